# Which hosts have answered. Reads the hosts (lines ADDRESS NAME) and what gcloud printed, and writes
# STATE, CODE, TIME, KEY and NAME of each host that answered to the file `states`, with tabs between.
# Prints the names of the others, of five at most.
#
# A line of `worker.sh state` counts if it is complete; the last one of a host, since gcloud repeats a
# command whose connection broke. A host without a known address counts for any of those missing.

FILENAME == ARGV[1] {
    address = $1
    sub(/^[^ ]+ /, "")
    name[address] = $0
    order[++hosts] = address
    next
}

{ sub(/.*alpacare-state /, "") } # half a line may precede it

NF == 7 && $7 == "." {
    host = $1
    count = split($6, addresses, ",")
    for (i = 1; i <= count; i++)
        if (addresses[i] in name) {
            host = name[addresses[i]]
            known[host] = seen[addresses[i]] = 1
        }
    line[host] = $2 "\t" $3 "\t" $4 "\t" $5 "\t" host
}

END {
    printf "" >states
    for (host in line) {
        print line[host] >states
        answers++
        strangers += !(host in known)
    }
    for (address in name) absent += !(address in seen)
    for (i = 1; i <= hosts && strangers < absent && named < 6; i++)
        if (!(order[i] in seen)) missing = missing ", " (named++ < 5 ? name[order[i]] : "...")
    print answers || absent ? substr(missing, 3) : "any host"
}

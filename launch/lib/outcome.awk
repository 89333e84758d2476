# What became of the command: OUTCOME CODE HOST, from what answers.awk writes.

{
    state = $1
    count[state]++
}

(state == "ended" && $2 != 0) || state ~ /^(lost|killed|none)$/ {
    # The first to fail is the cause; the others fail because they lost it.
    if (!failed || $3 < first) {
        failed = 1
        first = $3
        code = $2
        host = $5
    }
}

state ~ /^(interrupted|rebooted)$/ && !gone { gone = $5 }

state == "stopped" && $2 > worst { worst = $2 }

END {
    if (count["stopped"] && !count["running"]) print "stopped", worst + 0, "-"
    else if (count["stopped"]) print "running 0 -"
    else if (gone) print "interrupted 1", gone
    else if (failed) print "failed", code, host
    else if (count["running"]) print "running 0 -"
    else print "done 0 -"
}

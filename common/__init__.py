"""What the packages share. Imports none of them.

alpacare        the command that lists and starts all others
cli             how a command starts and ends: flags, exit codes, one-line errors
exits           signals, unexpected errors and the end of a process
extras          packages that are not installed, and what installs them
locks           one process at a time makes an output
messages        counts, times, suggestions and the status line that commands print
sections        config files as frozen dataclasses; their keys as help
paths           folders of this machine and gs:// buckets
jsonl           JSONL files, read and written whole or line by line
records         Tasks and Examples, the records of instruction data
provenance      run.json, and files that are replaced whole
reports/        drawings as SVG and PNG, and the frame of a page
text/           prompts as text files, ROUGE-L, answers that decline to answer
"""

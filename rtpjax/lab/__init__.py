"""`rtpjax lab`: everything that a short visit to a GPU can tell, in one command.

    driver      one process a stage, with a limit          stages/    a file each: STAGE says what
       │                                                              it is, and runs
       ▼                                                     │
    results.jsonl  ◄──────── lines of JSON, on the disk at once (record)
       │
       ▼
    report + predictions.toml + decisions  ──►  a table, and lab.md: measured beside predicted

A stage that fails, hangs or loses the GPU takes nothing of the others with it. `--small` runs all
of it in miniature on the CPU, so that no stage fails on a GPU for a slip of the pen.
"""

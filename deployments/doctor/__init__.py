"""``lm doctor``: looks at everything that a run needs, says what is wrong and what to do about it.

finding.py         what one check found
examine.py         all checks in their order
machine.py         packages, store, disk, GPU, locks
server.py          deployments, work pools, limits, automations, dead runs
database_rows.py   rows of the SQLite database that the server cannot show
"""

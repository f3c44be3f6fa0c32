"""``lm doctor``: checks everything that a run needs and says how to fix what is wrong.

finding.py         what one check found
examine.py         all checks in their order
machine.py         packages, store, disk, GPU, locks
server.py          deployments, parameters, work pools, limits, automations, dead runs
database_rows.py   rows of the SQLite database that the server cannot show
"""

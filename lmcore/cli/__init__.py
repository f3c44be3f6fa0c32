"""The command line: one declaration of every action, and of every setting as a flag.

app.py        the list of all commands: begin here, and add a new one to ACTIONS
pipeline.py, runs.py, versions.py, store.py   what the commands do, a function each
options.py    parameters that several actions share, and how they differ in a form
flags.py      a command whose flags are settings, with their help, and what is checked before it starts
outcome.py    what an action returns, and how a command ends: exit status, one line for an error, JSON
"""

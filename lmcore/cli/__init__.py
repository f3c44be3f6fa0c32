"""The command line: one declaration of every action, and of every setting as a flag.

app.py        the list of all commands: begin here
command.py    what an action returns, and the end of every command: exit status, one line for an error, JSON
flags.py      a command whose flags are settings, with their help, and what is checked before it starts
options.py    parameters that several actions share
pipeline.py, runs.py, versions.py, store.py   the actions
"""

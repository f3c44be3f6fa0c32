"""The command line: one declaration of every action, and of every setting as a flag.

app.py        the list of all commands: begin here
command.py    the end of every command: exit status, one line for an error, output that any terminal can show
settings.py   settings from flags, a TOML file or preset, and defaults; the place of a wrong value
flags.py      the flags of a settings model, with their help
options.py    parameters that several actions share
outcome.py    the result of an action, for a terminal, as JSON and for a page
pipeline.py, runs.py, versions.py, store.py   the actions
"""

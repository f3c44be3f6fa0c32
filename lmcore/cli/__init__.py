"""The command line: one declaration of every action, and of every setting as a flag.

command.py    what every command does at its end: exit status, one line for an error, output that any terminal takes
settings.py   flags over a TOML file or preset over defaults, and whose fault a wrong value is
flags.py      the flags of a settings model, with their help
app.py        the actions of ``python -m lmcore``, which ``lm`` adds to
pipeline.py, runs.py, models.py, store.py   the actions themselves
"""

from lmcore.cli.command import main as main

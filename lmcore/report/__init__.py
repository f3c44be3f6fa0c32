"""Pages and pictures of runs, datasets and decisions.

Promises: a page is Markdown in which no value from a text can become markup; figures come from the run's own files.
Imports: every wing above.
Doors: ``report.report``, ``retraining_report.retraining_page``, ``plots.plot``.
"""

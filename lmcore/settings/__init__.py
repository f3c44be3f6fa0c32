"""Every setting, checked before anything runs.

Promises: a frozen pydantic model for each stage; a wrong value is named with the place where a person wrote it.
Imports: of lmcore only errors. Never reads the store.
Doors: ``config.RunConfig``, ``read.settings_of_flags``, ``read.settings_of``.
"""

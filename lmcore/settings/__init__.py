"""Every setting and every action's parameters, checked before anything runs.

Promises: a frozen pydantic model for each stage; a wrong value is named with the place where a person wrote it.
Imports: of lmcore only errors. Never reads the store.
Doors: ``config.RunConfig``, ``presets.read_settings``, ``form.settings_of``.
"""

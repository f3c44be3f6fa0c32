"""One folder that holds everything made.

Promises: an artifact is there whole or not at all; a path outside of LM_DATA_ROOTS is refused.
Imports: settings.
Doors: ``artifacts.sealed_folder``, ``artifacts.open_sealed``, ``artifacts.locked``, ``allowed_paths.confine``.
"""

"""One folder that holds everything made.

Promises: an artifact is complete or absent; a path outside of LM_DATA_ROOTS is refused.
Imports: settings.
Doors: ``artifacts.write_artifact``, ``artifacts.verify_artifact``, ``locks.locked``, ``allowed_paths.check_allowed``.
"""

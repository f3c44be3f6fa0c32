"""One Prefect task a stage: how safely lmcore's work is done."""

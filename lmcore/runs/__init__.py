"""The folder of one training: its settings, its results, and the child process that trains.

Promises: a run is named by everything that decides its result; results are small JSON, readable without torch.
Imports: settings, store, corpus, tokenizer, dataset. No torch.
Doors: ``prepare.prepare_run``, ``launch.train_in_child``, ``scores.Evaluation``.
"""

"""What several experiments lean on: tasks, corpora, language models, detection, moving digits, baselines."""

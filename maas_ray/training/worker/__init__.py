"""One training worker: its loop, its optimizer steps, its reports and its checkpoints."""

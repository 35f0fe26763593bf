"""Training: from scratch, fine-tuning and distillation, on transformers' Trainer."""

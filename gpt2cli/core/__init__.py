"""The generation core: prompts in, chunks of text out. Nothing here downloads, prints or reads settings.

The way of a token:

1. `Engine.stream` (`engine.py`) encodes the prompt and makes a `Group` of it: the prompt's ids, the options
   and their sampler, and a `Sequence` for each text that is to continue it (`sequence.py`).
2. The `Scheduler` (`scheduler.py`) gives it a slot for its keys and values, and feeds the slot what it does
   not hold yet: parts of the prompt, and later each token that was drawn. One `Batch` a step holds what all
   running sequences have to feed.
3. The `Backend` (`backend.py`) computes the logits after the last token of each sequence. Which one loads a
   model, `choose.py` says: the native library on a CPU (`native/`), or torch (`torch_gpt2.py`).
4. The sequence's `Sampler` (`sampling.py`) filters its logits and draws the token, by noise that depends on
   seed, position and token alone (`random.py`).
5. `Sequence.take` adds the token: it becomes text, is matched against the stops and the limits, and leaves as
   a `Chunk` (`results.py`). What has ended frees its slot, and the next one in the queue takes its row.

This is the only decode loop: one text, several of one prompt, a list of prompts and a chat's next turn differ
in what is admitted, and in whether the slot of the last text is kept to begin with.

Torch is imported by the torch backend, by ``rng="transformers"``, and to read pickles.
"""

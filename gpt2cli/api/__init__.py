"""OpenAI's API as data, without HTTP: what a body may say, what is to be done for it, and the answer.

1. `bodies.py` has the schemas, which `schema.py` checks a body against.
2. `reading.py` and `chat.py` make parts of it (`parts.py`): a prompt as tokens, its options, and the texts
   that continue it. The names of models are `models.py`'s.
3. `completions.py` and `chat.py` write the answer from what the parts have come to (`answers.py`).
4. What is wrong with a body is an `ApiError` (`errors.py`), in OpenAI's shape.

`serve` runs the parts for clients that wait, `batch` for the rows of a file.
"""

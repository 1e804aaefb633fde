"""Text: documents, their split, their tokenizer and the packed token sequences.

``corpus`` reads documents, ``python_corpus`` makes the default ones, ``split`` holds some out,
``tokenizer`` cuts them into tokens, ``dataset`` packs those into sequences.
"""

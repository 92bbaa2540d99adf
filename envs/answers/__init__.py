"""Answers as they are written, and what they mean; the corpora of answers and of attacks on graders stand here too.

tidy.py     one way of writing (spacing, spellings, unicode, thousands, mixed numbers, powers of ten)
numbers.py  numbers, exactly, and when two of them are equal
units.py    units of measurement
forms.py    what else is plain without algebra: bases, relations, dots, lists
equal.py    the comparison
worker.py   math-verify, with numbers compared relatively; runs in worker processes alone
corpus.py   reads answers.jsonl and attacks.jsonl
"""

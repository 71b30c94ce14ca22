"""The manual behind Python's `help("topics")`: 79 English texts, 0.47 MB. No download.

Source: pydoc_data.topics of the standard library (Python Software Foundation License). It differs a
little from one Python version to the next, and so does a curve trained on it.
"""

from pydoc_data.topics import topics

from datasets import Dataset


def python_docs() -> Dataset:
    """Columns: topic (such as "slicings"), text. In alphabetical order of the topics."""
    names = sorted(topics)
    return Dataset.from_dict({"topic": names, "text": [topics[name] for name in names]})

"""A tool: text in, text out."""


def reverse(text: str) -> str:
    """The text backwards."""
    return text[::-1]

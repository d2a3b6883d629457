"""Text in figures."""


def visible(text):
    """The text with spaces, line breaks and other characters without a shape made visible."""
    return ''.join({'\n': '⏎', ' ': '␣'}.get(c, c if c.isprintable() else '·') for c in text)

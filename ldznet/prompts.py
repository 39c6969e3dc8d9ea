"""The prompt templates that LD-ZNet was trained with (authors' released code)."""

TEMPLATES = (
    "a photo of a {}.",
    "a photograph of a {}.",
    "an image of a {}.",
    "{}.",
    "a cropped photo of a {}.",
    "a good photo of a {}.",
    "a photo of one {}.",
    "a bad photo of a {}.",
    "a photo of the {}.",
)
DEFAULT_TEMPLATE = TEMPLATES[0]  # our deterministic choice at inference; the authors draw one at random


def fill(template: str, phrase: str) -> str:
    """The prompt of a phrase: `{}` in the template is where the phrase goes, braces in the phrase stay."""
    return template.replace("{}", phrase)

"""The published templates."""

from ldznet.prompts import DEFAULT_TEMPLATE, TEMPLATES, fill


def test_there_are_the_nine_published_templates_each_with_one_place() -> None:
    assert len(set(TEMPLATES)) == 9
    assert all(template.count("{}") == 1 for template in TEMPLATES)
    assert DEFAULT_TEMPLATE in TEMPLATES


def test_a_phrase_with_braces_stays_as_it_is() -> None:
    assert fill("a photo of a {}.", "cat {0}") == "a photo of a cat {0}."

"""Texts in Markdown from templates: of our own words and figures, so nothing is escaped."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_markdown(template: Path, **values: object) -> str:
    """Fill in a template; a name that it uses and is not given is an error."""
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=False,  # noqa: S701 - Markdown, of our own words and figures
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**values)

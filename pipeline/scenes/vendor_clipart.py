"""Make the vendored clip-art (`vendored/*.json.gz`) from the three Iconify npm packages.

    python -m pipeline.scenes.vendor_clipart NOTO TWEMOJI FLUENT_EMOJI_FLAT

Each argument is an unpacked npm package folder or its `.tgz`. The nouns are those of `vendored/nouns.json`,
matched by Unicode code point because the packages name some pictures differently. Same input, same bytes.
"""

import argparse
import gzip
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldznet.errors import UserError

STYLES = ("noto", "twemoji", "fluent-emoji-flat")
VENDORED = Path(__file__).parent / "vendored"


def package_reader(package: Path) -> Callable[[str], Any]:
    """A function that gives one parsed JSON file of an npm package, from its folder or its tarball."""
    if package.is_dir():
        root = package / "package" if (package / "package").is_dir() else package
        return lambda name: json.loads((root / name).read_text(encoding="utf-8"))

    def from_tarball(name: str) -> Any:
        with tarfile.open(package) as tar:
            member = tar.extractfile(f"package/{name}")
            if member is None:
                raise UserError(f"{package} has no package/{name}: give an @iconify-json package")
            return json.load(member)

    return from_tarball


def picture(icons: dict[str, Any], name: str) -> dict[str, Any]:
    """One icon's SVG body and its view box `[left, top, width, height]`, aliases followed."""
    while name in icons.get("aliases", {}):
        alias = icons["aliases"][name]
        if set(alias) != {"parent"}:
            raise UserError(f"{name} is an alias that also transforms: choose another picture for it")
        name = alias["parent"]
    icon = icons["icons"][name]
    box = [icon.get("left", 0), icon.get("top", 0)]
    box += [icon.get(side, icons[side]) for side in ("width", "height")]
    return {"body": icon["body"], "box": box}


def vendor(style: str, package: Path, nouns: list[dict[str, Any]]) -> bytes:
    """The vendored file of one style: source, licence, one picture a noun; gzipped without a time stamp."""
    read = package_reader(package)
    about, info, names, icons = (
        read(name) for name in ("package.json", "info.json", "chars.json", "icons.json")
    )
    if info["prefix"] != style:
        raise UserError(f"{package} holds the style {info['prefix']!r}: give the {style!r} package there")
    kept = {
        "style": style,
        "source": {
            "package": about["name"],
            "version": about["version"],
            "author": info["author"],
            "license": info["license"],
        },
        "pictures": {noun["noun"]: picture(icons, names[noun["char"]]) for noun in nouns},
    }
    text = json.dumps(kept, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def main(arguments: list[str] | None = None) -> None:
    """Write the three vendored files beside `nouns.json`, or into `--out`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for style in STYLES:
        parser.add_argument(style.replace("-", "_"), type=Path, help=f"npm package @iconify-json/{style}")
    parser.add_argument("--out", type=Path, default=VENDORED)
    options = parser.parse_args(arguments)
    nouns = json.loads((VENDORED / "nouns.json").read_text(encoding="utf-8"))
    options.out.mkdir(parents=True, exist_ok=True)
    for style in STYLES:
        body = vendor(style, getattr(options, style.replace("-", "_")), nouns)
        (options.out / f"{style}.json.gz").write_bytes(body)


if __name__ == "__main__":
    main()

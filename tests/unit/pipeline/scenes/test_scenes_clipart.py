import io
import itertools
import json
import tarfile

import numpy as np
import pytest

from ldznet.errors import UserError
from pipeline.scenes import backgrounds
from pipeline.scenes.clipart import look, sprite, tints
from pipeline.scenes.colours import HUES, MAJORITY, colour_share, hue_saturation_value, to_rgb
from pipeline.scenes.config import KNOWN_STYLES
from pipeline.scenes.nouns import VENDORED, confusable, divide_nouns, load_nouns
from pipeline.scenes.vendor_clipart import vendor

ROOT = VENDORED.parents[2]


def test_vendored_data_stays_small_and_holds_many_nouns():
    assert sum(path.stat().st_size for path in VENDORED.rglob("*") if path.is_file()) <= 3_000_000
    names = [noun.name for noun in load_nouns()]
    assert len(names) > 500
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("style", KNOWN_STYLES)
def test_every_noun_renders_in_every_style(style):
    for noun in load_nouns():
        drawing = look(style, noun.name)
        assert drawing is not None, noun.name
        assert drawing.fill > 0.05, noun.name


@pytest.mark.parametrize("style", KNOWN_STYLES)
def test_sprites_are_trimmed_and_premultiplied(style):
    for noun in load_nouns()[:20]:
        pixels = np.asarray(sprite(style, noun.name, 64))
        assert max(pixels.shape[:2]) == 64
        assert (pixels[..., :3] <= pixels[..., 3:]).all()
        rows, columns = pixels[..., 3].max(1), pixels[..., 3].max(0)
        assert min(rows[:3].max(), rows[-3:].max(), columns[:3].max(), columns[-3:].max()) > 0


def test_recoloured_sprites_bear_their_colour():
    checked = 0
    for style, noun in itertools.product(KNOWN_STYLES, load_nouns()):
        for colour in tints(style, noun.name) if noun.tint else ():
            straight = np.asarray(sprite(style, noun.name, 64, colour).convert("RGBA"))
            assert colour_share(straight, colour) >= MAJORITY - 0.1, (style, noun.name, colour)
            checked += 1
    assert checked > 20 * len(HUES) * len(KNOWN_STYLES)


def test_colour_conversion_is_its_own_inverse():
    colours = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    back = to_rgb(hue_saturation_value(colours)).astype(int)
    assert np.abs(back - colours).max() <= 1


def test_words_are_clean_english():
    by_name = {noun.name: noun for noun in load_nouns()}
    assert by_name["unicorn"].indefinite() == "a unicorn"
    assert by_name["hourglass"].indefinite() == "an hourglass"
    assert by_name["umbrella"].indefinite() == "an umbrella"
    assert by_name["umbrella"].indefinite("red") == "a red umbrella"
    assert by_name["scissors"].indefinite() == "scissors"
    assert by_name["bunch of grapes"].plural == "bunches of grapes"
    for noun in load_nouns():
        assert noun.name == noun.name.strip()
        assert noun.name.isascii()
        assert noun.many == (noun.name == noun.plural) or noun.name in {
            "fish", "deer", "sheep", "moose", "bison", "squid", "jellyfish", "blowfish", "tropical fish",
            "water buffalo",
        }  # fmt: skip


def test_words_that_could_name_each_other_are_confusable():
    by_name = {noun.name: noun for noun in load_nouns()}
    for one, other in [("dog", "poodle"), ("cat", "black cat"), ("key", "old key"), ("car", "taxi")]:
        assert confusable(by_name[one], by_name[other])
        assert confusable(by_name[other], by_name[one])
    assert not confusable(by_name["dog"], by_name["dog"])
    assert not confusable(by_name["dog"], by_name["umbrella"])
    for one, other in itertools.permutations(load_nouns(), 2):
        if f" {other.name}".endswith(f" {one.name}"):
            assert confusable(one, other), (one.name, other.name)


def test_held_out_nouns_are_apart_and_stable():
    seen, out = divide_nouns(limit=100, held_out=20)
    assert len(seen) == 80
    assert len(out) == 20
    assert not set(seen) & set(out)
    more_seen, more_out = divide_nouns(limit=100, held_out=30)
    assert set(out) < set(more_out)
    assert set(more_seen) < set(seen)
    with pytest.raises(UserError, match="held_out_nouns"):
        divide_nouns(limit=20, held_out=15)


def test_licences_are_named():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for style, licence in [
        ("noto", "Apache-2.0"),
        ("twemoji", "CC-BY-4.0"),
        ("fluent-emoji-flat", "MIT"),
    ]:
        assert (VENDORED / "LICENSES" / f"{licence}.txt").stat().st_size > 100
        assert f"LICENSES/{licence}.txt" in notice
        assert f"vendored/{style}.json.gz" in notice


def test_photos_of_training_are_not_those_of_the_test():
    assert not set(backgrounds.installed_photos(held_out=False)) & set(
        backgrounds.installed_photos(held_out=True)
    )
    files = [photo.file for photo in backgrounds.PHOTOS]
    assert len(set(files)) == len(files)


def test_what_photos_show_are_nouns_or_kinds_that_exist():
    known = {noun.name for noun in load_nouns()}.union(*(noun.kinds for noun in load_nouns()))
    for photo in backgrounds.PHOTOS:
        assert photo.shows <= known, photo.file


def test_gradients_stand_in_where_no_photo_package_is_installed(monkeypatch):
    caches = (backgrounds._path, backgrounds.installed_photos, backgrounds.photos_digest)
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda name: None)
        for cache in caches:
            cache.cache_clear()
        assert backgrounds.installed_photos(held_out=False) == ()
        drawn = backgrounds.draw_background(np.random.default_rng(1), size=64, photos=1, held_out=False)
        without = backgrounds.photos_digest()
    for cache in caches:
        cache.cache_clear()
    assert drawn.pixels.shape == (64, 64, 3)
    assert drawn.words.startswith("on a")
    assert without != backgrounds.photos_digest()


def package(folder):
    folder.mkdir()
    icons = {
        "prefix": "noto",
        "width": 16,
        "height": 16,
        "icons": {"dog": {"body": "<path d='M0 0h9v9z'/>"}, "cat": {"body": "<g/>", "left": 2, "width": 20}},
        "aliases": {"hound": {"parent": "dog"}},
    }
    about = {"name": "@iconify-json/noto", "version": "1.0.0"}
    info = {"prefix": "noto", "author": {"name": "A"}, "license": {"title": "L"}}
    for name, body in [("icons", icons), ("package", about), ("info", info)]:
        (folder / f"{name}.json").write_text(json.dumps(body))
    (folder / "chars.json").write_text(json.dumps({"1": "hound", "2": "cat"}))
    return folder


def test_vendoring_gives_the_same_bytes_from_folder_and_tarball(tmp_path):
    nouns = [{"noun": "dog", "char": "1"}, {"noun": "cat", "char": "2"}]
    folder = package(tmp_path / "noto")
    tarball = tmp_path / "noto.tgz"
    with tarfile.open(tarball, "w:gz") as tar:
        for path in folder.iterdir():
            body = path.read_bytes()
            member = tarfile.TarInfo(f"package/{path.name}")
            member.size = len(body)
            tar.addfile(member, io.BytesIO(body))
    assert vendor("noto", folder, nouns) == vendor("noto", tarball, nouns)
    with pytest.raises(UserError, match="'twemoji'"):
        vendor("twemoji", folder, nouns)

"""What sources hold, in which order, and by which names."""

import io
import os
import tarfile

import pyarrow
import pyarrow.parquet
import pytest

from bulk.errors import BulkError
from bulk.sources import Sources
from models.media.base import InvalidMedia
from tests.bulk.pictures import picture, write_pictures, write_tar


def ids(*given, **options):
    return [item.id for item in Sources([str(each) for each in given], **options).walk()]


def read_all(*given, **options):
    """Return what each item holds, or what is wrong with it."""
    found = {}
    for item in Sources([str(each) for each in given], **options).walk():
        try:
            found[item.id] = item.read()
        except InvalidMedia as error:
            found[item.id] = str(error)
    return found


def write_parquet(path, values, **columns):
    table = pyarrow.table({"image": values, **columns})
    pyarrow.parquet.write_table(table, path, row_group_size=3)


def test_a_folder_is_read_as_its_paths_are_sorted_and_hidden_files_are_not(tmp_path):
    for name in (
        "b.png",
        "a/2.jpg",
        "a/10.jpg",
        "a.png",
        "a/.hidden.png",
        ".cache/x.png",
        "c/d/e.webp",
        "f.txt",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    expected = ["a.png", "a/10.jpg", "a/2.jpg", "b.png", "c/d/e.webp"]
    assert ids(tmp_path) == expected == sorted(expected)
    assert Sources([str(tmp_path)]).list().num_others == 1


def test_sources_share_a_folder_that_ids_begin_in_and_none_comes_twice(tmp_path):
    write_pictures(tmp_path / "x" / "a", 2)
    write_pictures(tmp_path / "x" / "b", 1)
    both = [tmp_path / "x" / "b", tmp_path / "x" / "a", tmp_path / "x" / "a" / "0001.png"]
    assert ids(*both) == ["a/0000.png", "a/0001.png", "b/0000.png"]
    assert ids(tmp_path / "x" / "a" / "*1.png") == ["0001.png"]
    assert ids(tmp_path / "x" / "**" / "*0.png") == ["a/0000.png", "b/0000.png"]


def test_the_folder_that_is_written_is_not_a_source(tmp_path):
    write_pictures(tmp_path / "codes", 1)
    (tmp_path / "a.png").write_bytes(b"x")
    assert ids(tmp_path, excluded=tmp_path / "codes") == ["a.png"]


def test_members_of_a_tar_come_in_their_order_and_only_pictures(tmp_path):
    write_tar(tmp_path / "a.tar", ["2.png", "2.json", "1.png", "sub/0.jpg"])
    found = read_all(tmp_path)
    assert list(found) == ["a.tar!2.png", "a.tar!1.png", "a.tar!sub/0.jpg"]
    assert found["a.tar!1.png"] == picture(2)


def test_a_tar_that_breaks_gives_what_is_before_and_says_so(tmp_path):
    write_tar(tmp_path / "a.tar", ["0.png", "1.png", "2.png"])
    whole = (tmp_path / "a.tar").read_bytes()
    with tarfile.open(tmp_path / "a.tar") as tar:
        second, third = tar.getmembers()[1:]
    for broken, said in (
        (whole[: second.offset_data + 10], {"a.tar!1.png": "the tar ends within it"}),
        (
            whole[: third.offset] + b"\1" * 512 + whole[third.offset + 512 :],
            {"a.tar!1.png": picture(1), "a.tar!": "the tar is broken from here on"},
        ),
    ):
        (tmp_path / "a.tar").write_bytes(broken)
        found = read_all(tmp_path)
        assert found.pop("a.tar!0.png") == picture(0)
        assert {name: found[name][: len(text)] for name, text in said.items()} == said
    (tmp_path / "a.tar").write_bytes(b"not a tar at all" * 100)
    assert list(read_all(tmp_path)) == ["a.tar!"]


@pytest.mark.parametrize("is_struct", [False, True])
def test_rows_of_parquet_are_pictures_in_any_order(tmp_path, is_struct):
    data = [picture(number) for number in range(8)]
    values = [{"bytes": each, "path": "x"} for each in data] if is_struct else data
    write_parquet(tmp_path / "a.parquet", [*values, None], label=list(range(9)))
    found = read_all(tmp_path)
    assert list(found) == [f"a.parquet#{row}" for row in range(9)]
    assert list(found.values()) == [*data, "is null"]
    some = [item.read() for row, item in enumerate(Sources([str(tmp_path)]).walk()) if row in (1, 4, 7)]
    assert some == [data[row] for row in (1, 4, 7)]


def test_a_parquet_of_several_columns_of_bytes_wants_one_named(tmp_path):
    write_parquet(tmp_path / "a.parquet", [picture(0)], thumbnail=[picture(1)])
    several = "pictures may be in image or thumbnail; say which with --column"
    assert read_all(tmp_path) == {"a.parquet#": several}
    with pytest.raises(BulkError, match=f"hold no picture that can be used; a.parquet#: {several}"):
        Sources([str(tmp_path)]).list()
    assert read_all(tmp_path, column="thumbnail") == {"a.parquet#0": picture(1)}
    (problem,) = read_all(tmp_path, column="picture").values()
    assert problem == "has no column of bytes picture, which --column names; it has these: image, thumbnail"


def test_what_cannot_be_read_is_an_item_that_says_so(tmp_path):
    for name in ("pipe.png", "pipe.tar", "pipe.parquet"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "link.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not at all")
    (tmp_path / "empty.png").touch()
    with (tmp_path / "huge.png").open("wb") as file:
        file.truncate(10 * 2**20 + 1)
    assert read_all(tmp_path) == {
        "bad.parquet#": "the parquet file is broken, or can't be read",
        "empty.png": "is empty",
        "huge.png": "at most 10485760 bytes, got 10485761",
        "link.png": "can't be read: No such file or directory",
        "pipe.parquet#": "is not a regular file",
        "pipe.png": "is not a regular file",
        "pipe.tar!": "is not a regular file",
    }


def test_the_digest_tells_other_names_and_sizes_apart(tmp_path):
    write_pictures(tmp_path / "a", 2)
    before = Sources([str(tmp_path / "a")]).list()
    assert before.num_items == 2
    (tmp_path / "a" / "0001.png").rename(tmp_path / "a" / "0002.png")
    renamed = Sources([str(tmp_path / "a")]).list()
    (tmp_path / "a" / "0002.png").write_bytes(b"x")
    changed = Sources([str(tmp_path / "a")]).list()
    assert len({before.digest, renamed.digest, changed.digest}) == 3


def test_sources_without_pictures_are_refused(tmp_path):
    with pytest.raises(BulkError, match="there is no such file or folder"):
        Sources([str(tmp_path / "none")])
    with pytest.raises(BulkError, match="there is no such file or folder"):
        Sources([str(tmp_path / "*.png")])
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(BulkError, match=r"hold no file that is taken .* and 1 others"):
        Sources([str(tmp_path)]).list()


def test_items_of_a_shard_that_are_not_those_of_the_listing_are_held_back(tmp_path):
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(b"x")
    sources = Sources([str(tmp_path)])
    sources.list(mark_every=2)
    assert len(list(sources.walk_unchanged())) == 6
    (tmp_path / "2.png").rename(tmp_path / "9.png")
    walk = sources.walk_unchanged()
    assert [next(walk).id for _ in range(3)] == ["0.png", "1.png", "3.png"]
    with pytest.raises(BulkError, match="changed while they were encoded"):
        next(walk)


def test_a_folder_of_codes_is_passed_over_by_patterns_too_and_links_cost_their_own_row(tmp_path):
    (tmp_path / "codes").mkdir()
    (tmp_path / "codes" / "histogram.png").write_bytes(b"x")
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    found = Sources([str(tmp_path / "**" / "*.png")], excluded=tmp_path / "codes")
    assert [item.id for item in found.walk()] == ["a.png", "loop.png"]
    assert ids(tmp_path, excluded=tmp_path / "codes") == ["a.png", "loop.png"]


def test_links_in_a_tar_are_items_without_bytes(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("a.png"), io.BytesIO(b""))
        link = tarfile.TarInfo("b.png")
        link.type, link.linkname = tarfile.LNKTYPE, "a.png"
        tar.addfile(link)
    _, second = Sources([str(tmp_path / "a.tar")]).walk()
    assert second.id == "a.tar!b.png"
    with pytest.raises(InvalidMedia, match="is a link"):
        second.read()


def test_a_file_without_pictures_stops_nothing_and_is_told(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x"]}), tmp_path / "a.parquet")
    (tmp_path / "b.png").write_bytes(picture(0))
    listing = Sources([str(tmp_path)]).list()
    assert (listing.num_items, listing.num_problems) == (2, 1)
    problem = "no column holds bytes, or structs with bytes; it has these: text"
    assert listing.problems == (f"a.parquet#: {problem}",)
    assert read_all(tmp_path) == {"a.parquet#": problem, "b.png": picture(0)}


def test_members_of_one_name_have_ids_of_their_own(tmp_path):
    write_tar(tmp_path / "a.tar", ["0.png", "1.png", "0.png", "0.png"])
    found = read_all(tmp_path)
    assert list(found) == ["a.tar!0.png", "a.tar!1.png", "a.tar!0.png#2", "a.tar!0.png#3"]
    assert list(found.values()) == [picture(number) for number in range(4)]


def test_names_that_are_not_text_have_ids_of_their_own(tmp_path):
    for name in (b"\xff.png", b"\\xff.png", b"a\nb.png"):
        (tmp_path / os.fsdecode(name)).write_bytes(name)
    assert sorted(ids(tmp_path)) == ["\\\\xff.png", "\\xff.png", "a\nb.png"]


def test_patterns_do_not_follow_links_that_lead_in_circles(tmp_path):
    (tmp_path / "a").mkdir()
    for name in ("one", "two"):
        (tmp_path / "a" / name).symlink_to(tmp_path)
    (tmp_path / "a" / "0.png").write_bytes(b"x")
    (tmp_path / "a" / ".hidden.png").write_bytes(b"x")
    assert ids(tmp_path / "**" / "*.png") == ["0.png"]
    assert ids(tmp_path / "a" / ".*.png") == [".hidden.png"]
    with pytest.raises(BulkError, match="can't be a path or a pattern"):
        ids(tmp_path / "a**b.png")


def test_what_is_said_of_a_file_that_cannot_be_read_names_no_path_of_the_machine(tmp_path):
    (tmp_path / "a.tar").symlink_to(tmp_path / "nowhere")
    assert read_all(tmp_path) == {"a.tar!": "can't be read: No such file or directory"}


def test_a_picture_that_changes_while_it_is_read_is_an_error(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(picture(0))
    (item,) = Sources([str(path)]).walk()
    with path.open("ab") as file:
        file.write(b"more")
    with pytest.raises(InvalidMedia, match="changed while it was read"):
        item.read()


def test_a_tar_whose_header_asks_for_more_than_a_picture_breaks_there(tmp_path):
    write_tar(tmp_path / "a.tar", ["0.png"])
    whole = (tmp_path / "a.tar").read_bytes().rstrip(b"\0")
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**33
    padding = b"\0" * (-len(whole) % 512)
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(whole + padding + header.tobuf(tarfile.GNU_FORMAT))
        file.truncate(2**34)  # takes no room
    found = read_all(tmp_path)
    assert found == {
        "a.tar!0.png": picture(0),
        "a.tar!": "the tar is broken from here on: a header of 8589934592 bytes",
    }

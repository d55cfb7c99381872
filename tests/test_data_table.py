"""Images listed in a table: labels, splits, tasks, and what a broken table says."""

import numpy as np
import pytest

from afterimage.data import check_classes, open_data
from afterimage.errors import DataError, UserError
from afterimage.evaluation.configs import EvaluateConfig
from afterimage.finetune.evaluate import evaluate
from afterimage.finetune.methods.tasks import Tasks
from afterimage.finetune.run import finetune
from afterimage.reading import ReadingOptions
from tests.test_data_sources import write
from tests.test_finetune_program import config, make_encoder

NAMES = ["a.png", "scans/b.png", "scans/c.png", "d.png"]


def table(root, text, name="labels.csv"):
    (root / name).write_text(text, encoding="utf-8")
    return f"csv:{root / name}"


def named(images):
    names = [
        images.class_names[label] if label >= 0 else None for label in images.labels
    ]
    return dict(zip(images.ids, names))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_labels_splits_and_tasks(tmp_path, delimiter):
    write(tmp_path, [*NAMES, "not-listed.png"])
    text = (
        "\ufeffsplit,image,label,stain\n"
        'train,a.png,"good, very",red\n'
        "train,scans/b.png,bad,\n"
        "\n"
        "Test,scans/c.png,bad,blue\n"
        "train, d.png ,,red\n"
    )
    if delimiter != ",":
        text = text.replace('"good, very"', "good").replace(",", delimiter)
    splits = open_data(table(tmp_path, text), tasks=("stain", "organ"))
    good = "good, very" if delimiter == "," else "good"
    assert named(splits.train) == {"a.png": good, "scans/b.png": "bad", "d.png": None}
    assert named(splits.test) == {"scans/c.png": "bad"}
    assert set(splits.train.tasks) == {"stain"}
    assert named(splits.train.of_task("stain")) == {
        "a.png": "red",
        "scans/b.png": None,
        "d.png": "red",
    }
    assert named(splits.test.of_task("stain")) == {"scans/c.png": "blue"}
    assert splits.validation is None


def test_pixels_are_those_of_the_folder_and_stand_in_the_tables_order(tmp_path):
    folder = open_data(write(tmp_path, NAMES)).train
    listed = open_data(table(tmp_path, "image\nd.png\na.png\n")).train
    assert listed.ids == ["d.png", "a.png"]
    assert listed.labels is None
    rows = [folder.ids.index(name) for name in listed.ids]
    np.testing.assert_array_equal(listed.gather([0, 1]), folder.gather(rows))


def test_the_fingerprint_tells_a_changed_label_of_a_task(tmp_path):
    write(tmp_path, NAMES)
    prints = set()
    for colour in ("red", "blue"):
        spec = table(
            tmp_path,
            f"image,label,c\na.png,x,red\nd.png,y,blue\nscans/b.png,y,{colour}",
        )
        prints.add(open_data(spec, tasks=("c",)).train.fingerprint)
        plain = open_data(spec).train.fingerprint
    assert len(prints) == 2
    assert plain not in prints


def test_files_that_are_missing_are_bad_images(tmp_path):
    write(tmp_path, NAMES)
    spec = table(tmp_path, "image,label,c\nlost.png,x,1\na.png,x,2\nd.png,y,3\n")
    with pytest.raises(DataError, match=r"1 of 3 files(.|\n)*lost.png: "):
        open_data(spec)
    splits = open_data(spec, on_bad_image="skip", tasks=("c",))
    assert [bad.path for bad in splits.skipped] == ["lost.png"]
    assert named(splits.train.of_task("c")) == {"a.png": "2", "d.png": "3"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "columns empty"),
        ("picture,label\na.png,x\n", "picture, label; expected .*`image`"),
        ("image,x,x\na.png,1,2\n", "image, x, x"),
        ("image\n", "no images"),
        ("image,label\na.png\n", "line 2 has 1 cells.* 2"),
        ("image,label\n,x\n", "line 2 names no image"),
        ("image\na.png\na.png\n", r"a.png.*lines 2 and 3"),
        ("image,split\na.png,trian\n", "split contains trian; expected train"),
        ("image,split\na.png,test\n", "has test but no train"),
    ],
)
def test_tables_that_are_none(tmp_path, text, message):
    write(tmp_path, NAMES)
    with pytest.raises(DataError, match=message):
        open_data(table(tmp_path, text))


def test_a_table_without_a_label_is_told_which_column_to_add(tmp_path):
    write(tmp_path, NAMES)
    splits = open_data(table(tmp_path, "image,digit\na.png,1\nd.png,2\n"))
    with pytest.raises(DataError, match=r"has no labels.*a column `label` in a csv"):
        check_classes(splits)


def test_what_is_not_a_text(tmp_path):
    (tmp_path / "labels.csv").write_bytes(b"image\n\xff\xfe\x00.png\n")
    with pytest.raises(DataError, match=r"line 2 .*NUL"):
        open_data(f"csv:{tmp_path}/labels.csv")
    with pytest.raises(DataError, match="does not exist"):
        open_data(f"csv:{tmp_path}/other.csv")
    with pytest.raises(UserError, match="csv:PATH"):
        open_data(f"folder:{tmp_path}", tasks=("colour",))


@pytest.mark.slow
def test_two_tasks_of_image_files_are_learned_and_scored(tmp_path):
    """Shade (dark or light) is the label; the task `side` has half its cells empty."""
    from PIL import Image

    rng, lines = np.random.default_rng(0), ["image,split,label,side"]
    for i in range(48):
        light, left = i % 2, i // 2 % 2
        pixels = rng.integers(0, 40, (8, 8), np.uint8) + 150 * light
        pixels[:, slice(0, 3) if left else slice(5, 8)] += 60
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{i}.png")
        split = "test" if i >= 40 else "train"
        side = ("left" if left else "right") if i % 3 else ""
        lines.append(f"{i}.png,{split},{'light' if light else 'dark'},{side}")
    spec = table(tmp_path, "\n".join(lines))
    make_encoder(tmp_path / "encoder")
    out = tmp_path / "run"
    done = finetune(
        config(
            tmp_path,
            out,
            data=spec,
            methods=(Tasks(columns=("side",)),),
            mode="full",
            steps=40,
            lr=3e-3,
        )
    )
    found = done.results["tasks"]["side"]["test"]
    assert found["accuracy"]["value"] >= 0.75
    again = evaluate(EvaluateConfig(from_=str(out), data=spec))
    assert again["tasks"]["side"]["accuracy"] == found["accuracy"]
    plain = table(tmp_path, "image,label\n1.png,light\n0.png,dark\n", "plain.csv")
    only = evaluate(EvaluateConfig(from_=str(out), data=plain))
    assert "side" not in only.get("tasks", {})


def rows(count, **changed):
    """A table of so many images, some of its lines replaced: {line: text}."""
    lines = [
        "image,label",
        *(f"{i}.png,{'cat' if i % 2 else 'dog'}" for i in range(count)),
    ]
    for line, text in changed.items():
        lines[int(line.removeprefix("line")) - 1] = text
    return "\n".join(lines) + "\n"


LONG = f'5.png,"cat{"x" * 140_000}'


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (rows(10_000, line7='5.png,"cat'), "line 7: "),
        (rows(50, line7='5.png,"cat'), "line 7: "),
        (rows(50, line7='5.png,"cat', line12='10.png,"dog"'), "line 7: "),
        (rows(50, line7='5.png,"cat', line12='10.png,dog"'), "line 7: "),
        (rows(50, line7=LONG), "line 7: "),
        (rows(50, line7='5.png,"cat" sat'), "line 7: "),
        ('image,text,label\n0.png,"a,x\n1.png,b,x\n2.png,c",x\n', "line 2: "),
    ],
)
def test_a_quote_that_is_not_closed_is_named_by_its_line(tmp_path, text, line):
    with pytest.raises(DataError, match=line) as caught:
        open_data(table(tmp_path, text))
    assert "quote" in str(caught.value)


def test_cells_of_other_columns_may_have_several_lines(tmp_path):
    write(tmp_path, NAMES)
    text = 'image,caption,label\na.png,"a cat,\non a mat",cat\nd.png,"a ""dog""",dog\n'
    assert named(open_data(table(tmp_path, text)).train) == {
        "a.png": "cat",
        "d.png": "dog",
    }


@pytest.mark.parametrize(
    "encode",
    [
        lambda text: text.encode("utf-16"),
        lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
        lambda text: text.replace(",", ";").encode("utf-8-sig"),
        lambda text: ("sep=;\n" + text.replace(",", ";")).encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: (text + ",,\n\n,,\n").encode(),
        lambda text: text.replace("Image", " IMAGE ").encode(),
        lambda text: "".join(f"{i},{t}\n" for i, t in _numbered(text)).encode(),
    ],
    ids=["utf-16", "big endian", "bom", "sep", "crlf", "cr", "empty", "case", "index"],
)
def test_tables_as_programs_save_them(tmp_path, encode):
    write(tmp_path, NAMES)
    text = "Image,Label,Split\na.png,Käfer,train\nd.png,Ähre,Test\n"
    (tmp_path / "t.csv").write_bytes(encode(text))
    found = open_data(f"csv:{tmp_path}/t.csv")
    assert named(found.train) == {"a.png": "Käfer"}
    assert named(found.test) == {"d.png": "Ähre"}


def _numbered(text):
    """As pandas writes its index: a first column without a name."""
    return zip(("", "0", "1"), text.splitlines())


@pytest.mark.parametrize(
    "image", ["file_name", "filename", "path", "Image_Path", "file"]
)
@pytest.mark.parametrize("label", ["class", "category", "target", "Labels"])
def test_columns_by_the_names_that_others_give_them(tmp_path, image, label):
    write(tmp_path, NAMES)
    text = f"{label},{image}\nx,a.png\ny,d.png\n"
    assert named(open_data(table(tmp_path, text)).train) == {"a.png": "x", "d.png": "y"}


def test_columns_that_may_both_be_meant(tmp_path):
    write(tmp_path, NAMES)
    with pytest.raises(DataError, match=r"file_name and path .*`image`"):
        open_data(table(tmp_path, "path,file_name\na.png,a.png\n"))
    with pytest.raises(DataError, match=r"class and target .*`label`"):
        open_data(table(tmp_path, "path,class,target\na.png,x,1\n"))
    text = "path,image,class,target,label\nno.png,a.png,no,no,x\n"
    assert named(open_data(table(tmp_path, text)).train) == {"a.png": "x"}
    spec = table(tmp_path, "image,class,target\na.png,x,1\n")
    found = open_data(spec, tasks=("target",)).train
    assert named(found) == {"a.png": "x"}
    assert named(found.of_task("target")) == {"a.png": "1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("./a.png,x\na.png,y\n", ["a.png", "2 and 3", "as x and as y"]),
        ("a.png,x\nscans/../a.png,x\n", ["a.png", "2 and 3"]),
        ("scans//b.png,x\nd.png,y\nscans/./b.png,y\n", ["scans/b.png", "2 and 4"]),
        ("\x1b.png,x\n\x1b.png,y\n", ["\\x1b.png", "2 and 3"]),
    ],
)
def test_one_image_in_two_lines(tmp_path, text, said):
    write(tmp_path, NAMES)
    with pytest.raises(DataError) as caught:
        open_data(table(tmp_path, f"image,label\n{text}"))
    assert all(word in str(caught.value) for word in said)


def test_one_image_by_its_path_from_the_root_and_from_the_table(tmp_path):
    write(tmp_path, NAMES)
    spec = table(tmp_path, f"image,label\na.png,x\n{tmp_path}/a.png,y\n")
    with pytest.raises(DataError, match="2 and 3, as x and as y"):
        open_data(spec, reading=ReadingOptions(outside_images=True))


def test_a_path_is_normal_in_its_id(tmp_path):
    write(tmp_path, NAMES)
    found = open_data(table(tmp_path, "image\n./a.png\nscans//b.png\n")).train
    assert found.ids == ["a.png", "scans/b.png"]


@pytest.mark.parametrize("word", ["NA", "nan", "null", "None", "N/A", "-1"])
def test_words_for_nothing_are_classes_and_that_is_said(tmp_path, word, capsys):
    write(tmp_path, NAMES)
    spec = table(tmp_path, f"image,label,c\na.png,{word},1\nd.png,x,unknown\n")
    assert named(open_data(spec).train) == {"a.png": word, "d.png": "x"}
    err = capsys.readouterr().err
    assert "label" in err
    assert f"--missing {word}" in err
    found = open_data(
        spec, tasks=("c",), reading=ReadingOptions(missing=f"{word}, unknown")
    ).train
    assert named(found) == {"a.png": None, "d.png": "x"}
    assert named(found.of_task("c")) == {"a.png": "1", "d.png": None}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("cell", "there"),
    [
        ("a.JPG", "a.png"),
        ("a.jpeg", "a.png"),
        ("A.PNG", "a.png"),
        ("a", "a.png"),
        ("scans\\b.png", "scans/b.png"),
        ("Scans/B.png", "scans/b.png"),
        ("./scans/b.jpg", "scans/b.png"),
        ("cafe\u0301.png", "caf\u00e9.png"),
        ("other/b.png", None),
        ("e.png", None),
        ("a.png/b.png", None),
    ],
)
def test_a_near_miss_is_named(tmp_path, cell, there):
    write(tmp_path, [*NAMES, "caf\u00e9.png"])
    with pytest.raises(DataError, match="missing") as caught:
        open_data(table(tmp_path, f"image\n{cell}\nd.png\n"))
    assert (f"did you mean {there}?" in str(caught.value)) == (there is not None)


def test_a_name_of_300_letters_is_a_bad_image(tmp_path):
    write(tmp_path, NAMES)
    text = f"image\n{'x' * 300}.png\n{'y/' * 3000}a.png\na.png\n"
    found = open_data(table(tmp_path, text), on_bad_image="skip")
    assert [len(bad.path) for bad in found.skipped] == [304, 6005]


@pytest.mark.parametrize("cell", ["/etc/x.png", "../x.png", "scans/../../x.png", ".."])
def test_images_outside_the_tables_folder_need_the_option(tmp_path, cell):
    write(tmp_path / "t", NAMES)
    write(tmp_path, ["x.png"])
    text = f"image,label\na.png,x\n{cell},y\n"
    with pytest.raises(DataError, match=r"line 3: .*--outside-images"):
        open_data(table(tmp_path / "t", text))


def test_images_outside_the_tables_folder_where_that_is_meant(tmp_path):
    write(tmp_path / "t", NAMES)
    write(tmp_path, ["x.png"])
    for cell in ("../x.png", f"{tmp_path}/x.png", f"{tmp_path}/t/../x.png"):
        text = f"image,label\na.png,x\n{cell},y\n"
        found = open_data(
            table(tmp_path / "t", text), reading=ReadingOptions(outside_images=True)
        )
        assert named(found.train) == {"a.png": "x", cell: "y"}


def test_the_options_name_values_of_the_column_split(tmp_path):
    write(tmp_path, NAMES)
    cells = zip([*NAMES, "broken.png"], ["fold0", "fold1", "fold0", "fold2", "fold3"])
    text = "image,split\n" + "".join(f"{name},{split}\n" for name, split in cells)
    spec = table(tmp_path, text)
    with pytest.raises(DataError, match=r"contains fold0, fold1, fold2.*--train"):
        open_data(spec)
    found = open_data(spec, reading=ReadingOptions(train="fold0", test="fold1"))
    assert (found.train.ids, found.test.ids) == (
        ["a.png", "scans/c.png"],
        ["scans/b.png"],
    )
    with pytest.raises(DataError, match=r"--test fold9: .*column split"):
        open_data(spec, reading=ReadingOptions(train="fold0", test="fold9"))


def test_of_a_named_split_the_rest_is_read_as_ever(tmp_path):
    write(tmp_path, NAMES)
    text = "image,split\n" + "".join(
        f"{name},{split}\n" for name, split in zip(NAMES, ["train", "x", "test", "val"])
    )
    found = open_data(table(tmp_path, text), reading=ReadingOptions(test="x"))
    assert (found.train.ids, found.test.ids) == (["a.png"], ["scans/b.png"])
    assert found.validation.ids == ["d.png"]


def test_an_empty_cell_of_the_column_split_is_named(tmp_path):
    write(tmp_path, NAMES)
    with pytest.raises(DataError, match="empty cells"):
        open_data(table(tmp_path, "image,split\na.png,train\nd.png,\n"))


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ("fold", ("train", "test")),
        ("set", ("Training", "val")),
        ("is_valid", ("True", "False")),
        ("Test", ("0", "1")),
    ],
)
def test_a_column_that_tells_splits_apart_is_not_passed_over(tmp_path, column, cells):
    write(tmp_path, NAMES)
    text = f"image,label,{column}\na.png,x,{cells[0]}\nd.png,y,{cells[1]}\n"
    with pytest.raises(DataError, match=f"column {column}.*`split`"):
        open_data(table(tmp_path, text))
    assert len(open_data(table(tmp_path, text), tasks=(column,)).train) == 2
    text = text.replace(column, "note").replace(cells[1], cells[0])
    assert len(open_data(table(tmp_path, text)).train) == 2


def test_both_unicode_forms_in_a_table_are_one_class(tmp_path):
    write(tmp_path, NAMES)
    text = "image,label\na.png,caf\u00e9\nd.png,cafe\u0301\n"
    assert open_data(table(tmp_path, text)).train.class_names == ("caf\u00e9",)

"""Loaders read the real file formats, and say what is wrong with files that are absent or broken."""

import gzip
import pickle
import struct

import numpy as np
import pytest
import torch
from PIL import Image

from experiments import cifar, data, folders, training
from experiments.errors import ExperimentError
from experiments.settings import Settings

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _nothing_is_remembered():
    data.load.cache_clear()
    yield
    data.load.cache_clear()


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_fashion(folder, count=30):
    arrays = {}
    for part, size in (("train", count), ("t10k", 10)):
        arrays[part] = RNG.integers(256, size=(size, 28, 28), dtype=np.uint8), np.arange(size, dtype=np.uint8) % 10
        for name, array in zip(("images-idx3", "labels-idx1"), arrays[part], strict=True):
            (folder / f"{part}-{name}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    return arrays


def test_fashion_is_read_split_and_normalised(tmp_path):
    arrays = write_fashion(tmp_path)
    found = data.load("fashion-mnist", tmp_path, 20, 8)
    assert (len(found.training), len(found.validation), len(found.test)) == (20, 8, 10)
    chosen, others = data.split(30, 20, 8)
    assert not set(chosen) & set(others)
    assert found.training.y.tolist() == arrays["train"][1][chosen].tolist()
    assert found.validation.y.tolist() == arrays["train"][1][others].tolist()
    x = found.training.x
    assert x.dtype == torch.float32
    assert x.shape == (20, 1, 28, 28)
    assert float(x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    raw = arrays["train"][0][chosen].astype(np.float64)
    test = (arrays["t10k"][0] - raw.mean()) / raw.std()  # by the moments of what is trained on
    assert np.allclose(found.test.x[:, 0].numpy(), test, atol=1e-5)
    assert (found.shape, found.classes) == data.describe("fashion-mnist", tmp_path)


def test_batches_are_the_images_of_their_numbers(tmp_path):
    write_fashion(tmp_path)
    found = data.load("fashion-mnist", tmp_path, 20, 8).training
    x, y = found.batch(torch.tensor([3, 1]))
    assert torch.equal(x, found.x[[3, 1]])
    assert torch.equal(y, found.y[[3, 1]])


def test_absent_data_is_named(tmp_path):
    with pytest.raises(ExperimentError, match="dataset-fashion-mnist.*--data"):
        data.load("fashion-mnist", tmp_path / "nowhere", 1, 1)
    for name in ("cifar10", "images"):
        with pytest.raises(ExperimentError, match=f"folder of {name} with --data"):
            data.load(name, None, 1, 1)
    with pytest.raises(ExperimentError, match="data must be one of"):
        data.load("emnist", tmp_path, 1, 1)
    with pytest.raises(ExperimentError, match="train-images-idx3-ubyte.gz cannot be read"):
        data.load("fashion-mnist", tmp_path, 1, 1)


def test_too_many_images_are_refused(tmp_path):
    write_fashion(tmp_path)
    with pytest.raises(ExperimentError, match="the training set has 30 images; got training = 25 and validation = 8"):
        data.load("fashion-mnist", tmp_path, 25, 8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda whole: gzip.compress(whole)[:-12], "cannot be read as a gzip file", id="cut"),
        pytest.param(lambda _: b"plain", "cannot be read as a gzip file", id="not compressed"),
        pytest.param(lambda _: gzip.compress(b"\0\0\x0d\x03" + bytes(12)), "must be an IDX file of bytes", id="floats"),
        pytest.param(lambda _: gzip.compress(b""), "must be an IDX file of bytes", id="empty"),
        pytest.param(lambda whole: gzip.compress(whole[:10]), "its header needs 16 bytes", id="half a header"),
        pytest.param(
            lambda whole: gzip.compress(whole[:-1]),
            r"gives 48 bytes for the shape \(3, 4, 4\); got 47",
            id="a byte short",
        ),
        pytest.param(lambda whole: gzip.compress(whole + b"x"), "got 49", id="a byte more"),
    ],
)
def test_broken_idx_files(tmp_path, change, message):
    path = tmp_path / "images.gz"
    path.write_bytes(change(idx(np.zeros((3, 4, 4), np.uint8))))
    with pytest.raises(ExperimentError, match=message):
        data.read_idx(path)


def test_images_and_labels_have_to_belong_together(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(9, np.uint8))))
    with pytest.raises(ExperimentError, match=r"\(10, 28, 28\) and \(9,\)"):
        data.load("fashion-mnist", tmp_path, 1, 1)


def cifar_batches(count=4):
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        yield name, RNG.integers(256, size=(count, 3072), dtype=np.uint8), RNG.integers(10, size=count)


def python2_pickle(x: np.ndarray, y: np.ndarray) -> bytes:
    """Return a batch as Python 2 pickled it, with the module names that NumPy had then."""
    content = pickle.dumps({b"data": x, b"labels": y.tolist(), b"batch_label": b"a batch"}, protocol=2)
    return content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


@pytest.mark.parametrize("inside", ["", "cifar-10-batches-py"])
def test_cifar_for_python(tmp_path, inside):
    (tmp_path / inside).mkdir(exist_ok=True)
    batches = list(cifar_batches())
    for name, x, y in batches:
        content = python2_pickle(x, y)
        assert b"numpy.core.multiarray" in content
        (tmp_path / inside / name).write_bytes(content)
    _compare_cifar(cifar.read(tmp_path), batches)
    found = data.load("cifar10", tmp_path, 12, 6)
    assert found.shape == (3, 32, 32)
    assert torch.allclose(found.training.x.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)  # of each channel


def test_binary_cifar(tmp_path):
    batches = list(cifar_batches())
    for name, x, y in batches:
        content = np.concatenate([y.astype(np.uint8)[:, None], x], axis=1).tobytes()
        (tmp_path / f"{name}.bin").write_bytes(content)
    _compare_cifar(cifar.read(tmp_path), batches)


def _compare_cifar(found, batches):
    x, y, test_x, test_y = found
    expected = np.concatenate([x for _, x, _ in batches[:-1]]).reshape(-1, 3, 32, 32)
    assert np.array_equal(x, expected)
    assert np.array_equal(y, np.concatenate([y for *_, y in batches[:-1]]))
    assert np.array_equal(test_x, batches[-1][1].reshape(-1, 3, 32, 32))
    assert np.array_equal(test_y, batches[-1][2])


class _Evil:
    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(_Evil()), "builtins.print, which no batch of CIFAR-10 needs"),
        (pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}, protocol=2), "not a Python batch of CIFAR-10"),
        (pickle.dumps([1]), "not a Python batch of CIFAR-10"),
        (python2_pickle(np.zeros((2, 3072), np.uint8), np.zeros(2))[:-40], "not a Python batch of CIFAR-10"),
        (python2_pickle(np.zeros((2, 3071), np.uint8), np.zeros(2)), r"\(2, 3071\)"),
        (python2_pickle(np.zeros((2, 3072), np.uint8), np.array([0, 10])), "labels from 0 to 9"),
    ],
)
def test_broken_cifar_for_python(tmp_path, capsys, content, message):
    for name, x, y in cifar_batches():
        (tmp_path / name).write_bytes(python2_pickle(x, y))
    (tmp_path / "data_batch_1").write_bytes(content)
    with pytest.raises(ExperimentError, match=message):
        cifar.read(tmp_path)
    assert capsys.readouterr().out == ""


def test_broken_binary_cifar(tmp_path):
    with pytest.raises(ExperimentError, match="no CIFAR-10 in"):
        cifar.read(tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(bytes(3073))
    with pytest.raises(ExperimentError, match="data_batch_1.bin cannot be read"):
        cifar.read(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(bytes(3073 * 2 - 1))
    with pytest.raises(ExperimentError, match="records of 3073 bytes; got 6145"):
        cifar.read(tmp_path)


def write_folders(folder, classes=("cat", "dog"), count=6):
    for part, images in (("train", count), ("val", 2)):
        for number, name in enumerate(classes):
            place = folder / part / name
            place.mkdir(parents=True)
            for i in range(images):
                color = (40 * number + 10 * i, 100, 0)
                Image.new("RGB", (300, 260 + i), color).save(place / f"{i}.{'png' if i % 2 else 'JPEG'}")


def test_folders_of_images(tmp_path):
    write_folders(tmp_path)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    found = data.load("images", tmp_path, 8, 4)
    assert (len(found.training), len(found.validation), len(found.test)) == (8, 4, 4)
    assert (found.shape, found.classes) == ((3, 224, 224), 2) == data.describe("images", tmp_path)
    assert not set(found.training.paths) & set(found.validation.paths)
    x, y = found.training.batch(torch.arange(8))
    assert x.shape == (8, 3, 224, 224)
    assert x.dtype == torch.float32
    assert y.tolist() == [("cat", "dog").index(path.parent.name) for path in found.training.paths]
    for image, path, label in zip(x, found.training.paths, y.tolist(), strict=True):
        red = (40 * label + 10 * int(path.stem)) / 255  # one colour, but for what JPEG makes of it
        assert float(image[0, 100, 100]) == pytest.approx((red - 0.485) / 0.229, abs=0.05)


def test_gray_images_get_three_channels(tmp_path):
    write_folders(tmp_path)
    Image.new("L", (224, 500), 128).save(tmp_path / "val" / "cat" / "0.JPEG")
    x, _ = data.load("images", tmp_path, 4, 4).test.batch(torch.arange(4))
    assert x.shape == (4, 3, 224, 224)


def test_broken_folders_of_images(tmp_path):
    with pytest.raises(ExperimentError, match="train is not a folder"):
        data.load("images", tmp_path, 1, 1)
    (tmp_path / "train").mkdir()
    with pytest.raises(ExperimentError, match="no images in class folders"):
        folders.read(tmp_path / "train")
    write_folders(tmp_path)
    (tmp_path / "val" / "cow").mkdir()
    with pytest.raises(ExperimentError, match="cow is a class that the training images do not have"):
        data.load("images", tmp_path, 1, 1)
    broken = tmp_path / "train" / "cat" / "0.JPEG"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ExperimentError, match="0.JPEG cannot be read as an image"):
        folders.read(tmp_path / "train").batch(torch.tensor([0]))


def test_a_run_on_files(tmp_path):
    write_fashion(tmp_path, count=120)
    asked = Settings("fashion-mnist", "mlp", "matmul", 0.01, 1e-2, training=100, validation=20, epochs=1, batch=50)
    found = training.run(asked, tmp_path)
    assert found["test_accuracy"] in range(0, 101, 10)


@pytest.mark.parametrize(("name", "mode", "size"), [("mnist", "L", (28, 28)), ("cifar10", "RGB", (32, 32))])
def test_small_images_in_folders(name, mode, size, tmp_path):
    image = pytest.importorskip("PIL.Image")
    channels = () if mode == "L" else (3,)
    for part, count in (("train", 6), ("test", 2)):
        for label in ("0", "1"):
            folder = tmp_path / part / label
            folder.mkdir(parents=True)
            for k in range(count):
                pixels = np.random.default_rng(k).integers(0, 256, (*size, *channels), dtype=np.uint8)
                image.fromarray(pixels).save(folder / f"{k}.png")
    found = data.load(name, tmp_path, 8, 4)
    assert (len(found.training), len(found.validation), len(found.test)) == (8, 4, 4)
    assert found.shape == (3 if channels else 1, *size)
    assert found.training.x.shape == (8, *found.shape)
    image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "test" / "0" / "odd.png")
    with pytest.raises(ExperimentError, match="must have the shape"):
        data.load(name, tmp_path, 9, 3)

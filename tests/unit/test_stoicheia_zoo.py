# SPDX-License-Identifier: MIT OR Apache-2.0
"""The zoo: names, files, and downloads from a server that is played."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch

from tests.unit.test_stoicheia import drawn
from torch_mi.analysis.stoicheia import zoo
from torch_mi.analysis.stoicheia.networks import StoicheiaTransformer
from torch_mi.analysis.stoicheia.training import train
from torch_mi.analysis.stoicheia.zoo import FINAL, ZooName, download, grid, load
from torch_mi.errors import DownloadError, FileError, ModelError


def pth(path: Path, task: str, n: int, hidden: int) -> bytes:
    torch.save({k: v.float() for k, v in drawn(task, n, hidden).tensors().items()}, path)
    return path.read_bytes()


class Bucket:
    """A web server with some files, which counts what it is asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.short = 0
        self.asked: list[str] = []
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                bucket.asked.append(self.path)
                data = bucket.files.get(self.path)
                self.send_response(404 if data is None else 200)
                self.send_header("Content-Length", str(len(data or b"")))
                self.end_headers()
                self.wfile.write((data or b"")[: len(data or b"") - bucket.short])

            def log_message(self, *_: object) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] - says nothing
                """Nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    made = Bucket()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_names_go_there_and_back() -> None:
    cells = grid()
    assert len(cells) == 8 * 7 + 5 * 4 + 5 * 4 + 5 * 4
    assert len({str(cell) for cell in cells}) == len(cells)
    for cell in cells:
        assert ZooName.parse(str(cell)) == ZooName.parse(f"{cell}.pth") == cell
        assert ZooName.find(f"{cell.task.name}_{cell.hidden_size}_{cell.n}") == cell
    best = {name: ZooName.find(name).seed for name in ("2nd_argmax_16_10", "longest_cycle_4_4")}
    assert best == {"2nd_argmax_16_10": 2, "longest_cycle_4_4": 1}
    assert ZooName.find("argmedian_2_11").seed == 3
    wanted = f"{zoo.BUCKET}/zoo/median_8_10_{FINAL}_3.pth"
    assert ZooName.of("median", 8, 10).url() == wanted


def test_names_that_are_none() -> None:
    with pytest.raises(ModelError, match="no name of the zoo"):
        ZooName.find("third_argmax_2_2")
    with pytest.raises(ModelError, match=r"no 2nd_argmax with hidden size 7 and n=2; it has sizes"):
        ZooName.find("2nd_argmax_7_2")
    with pytest.raises(ModelError, match="the zoo has no argmax"):
        ZooName.find("argmax_2_2")
    with pytest.raises(ModelError, match="12 sequences"):
        ZooName.parse("2nd_argmax_2_2_12_0")
    with pytest.raises(ModelError, match="seed 5"):
        ZooName.parse("2nd_argmax_2_2_0_5")


def test_a_download_is_checked_put_in_place_and_kept(bucket: Bucket, tmp_path: Path) -> None:
    name, folder = ZooName.of("2nd_argmax", 4, 3), tmp_path / "cache"
    bucket.files[f"/zoo/{name}.pth"] = pth(tmp_path / "x.pth", "2nd_argmax", 3, 4)
    path = download("2nd_argmax_4_3", folder, bucket=bucket.url)
    assert path == folder / f"{name}.pth"
    found = load(path)
    assert (found.task.name, found.hidden_size, found.seq_len) == ("2nd_argmax", 4, 3)
    assert download(name, folder, bucket=bucket.url) == path
    assert bucket.asked == [f"/zoo/{name}.pth"]
    bucket.files["/one_layer_16_hidden_94_acc_2nd_argmax.pth"] = bucket.files[f"/zoo/{name}.pth"]
    assert download("blog", folder, bucket=bucket.url).name.startswith("one_layer_16")


def test_a_download_that_fails_leaves_nothing(bucket: Bucket, tmp_path: Path) -> None:
    name, folder = ZooName.of("2nd_argmax", 4, 3), tmp_path / "cache"

    def refused(match: str, error: type[Exception] = DownloadError) -> None:
        with pytest.raises(error, match=match):
            download(name, folder, bucket=bucket.url)
        assert not list(folder.iterdir())

    refused("answered 404")
    bucket.files[f"/zoo/{name}.pth"] = b"no network"
    refused("is not a network")
    bucket.files[f"/zoo/{name}.pth"] = pth(tmp_path / "x.pth", "2nd_argmax", 3, 5)
    refused("says hidden size 4; the weights have 5", ModelError)
    bucket.files[f"/zoo/{name}.pth"] = b"0" * (zoo.LARGEST + 1)
    refused("larger than any network")
    bucket.files[f"/zoo/{name}.pth"], bucket.short = pth(tmp_path / "x.pth", "argmax", 3, 4), 7
    refused("broke off")
    with pytest.raises(DownloadError, match="could not be reached"):
        download(name, folder, bucket="http://127.0.0.1:9")


def test_files_of_both_kinds(tmp_path: Path) -> None:
    rnn = drawn("argmedian", 5, 3)
    path = rnn.save(tmp_path / "m.safetensors")
    loaded = load(path, "argmedian")
    assert all(torch.equal(v, rnn.tensors()[k]) for k, v in loaded.tensors().items())
    pth(tmp_path / f"median_3_5_{FINAL}_0.pth", "median", 5, 3)
    assert load(tmp_path / f"median_3_5_{FINAL}_0.pth").seq_len == 5
    made = train("longest_cycle", 2, 3, steps=1, batch=4).network.save(tmp_path / "t.safetensors")
    found = load(made)
    assert isinstance(found, StoicheiaTransformer)
    assert (len(found.layers), found.seq_len, found.num_parameters) == (2, 3, 6 * 2 + 32 + 6)
    same = found.to(torch.float64).model().forward([[0, 2, 1]]).output
    assert same.shape == (1, 3, 3)


def test_files_that_are_none(tmp_path: Path) -> None:
    path = drawn("argmax", 3, 2).save(tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match="give task= one of 2nd_argmax, argmax"):
        load(path)
    with pytest.raises(FileError, match="is none of"):
        load(tmp_path / "m.bin")
    with pytest.raises(FileError, match="there is no file"):
        load(tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"m.safetensors: linear.weight has shape \[3, 2\]"):
        load(path, "argmax", 4)
    torch.save({"rnn": print}, tmp_path / "code.pth")
    with pytest.raises(FileError, match="holds more than tensors"):
        load(tmp_path / "code.pth", "argmax")

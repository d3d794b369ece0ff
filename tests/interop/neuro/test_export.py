"""The exported files: exact values, the comparison at its boundary, what is folded and what is refused."""

import json
from dataclasses import replace

import h5py
import nir
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import symboliclight
from symboliclight import InputError
from symboliclight.commands import cli
from symboliclight.core import checkpoint
from symboliclight.interop.nir import build, dialects, files
from symboliclight.interop.nir.executor import Executor, Graph, Work

FLOATS = {"width": 32, "allow_nan": False, "allow_infinity": False, "allow_subnormal": False}


def exported(model):
    return build.build(model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()})


@given(st.floats(2**-10, 100, **FLOATS), st.floats(**FLOATS), st.integers(-2, 2))
def test_above_the_stored_threshold_is_at_the_models(theta, v, ulps):
    theta = np.float32(theta)
    near = theta
    for _ in range(abs(ulps)):
        near = np.nextafter(near, np.float32(np.inf * ulps))
    for value in (np.float32(v), near):
        assert (value > files.below(theta)) == (value >= theta)
    assert files.threshold_of(files.below(theta)) == theta


@given(st.floats(2**-7, 1 - 2**-14, **FLOATS))
def test_tau_gives_the_leak_back_exactly(leak):
    node = build._lif(np.array([leak], np.float64), np.ones(1, np.float32))
    share = files.STEP_SECONDS / node.tau
    assert (1 - share).astype(np.float32) == np.float32(leak) and (node.r * share).astype(np.float32) == 1
    if leak >= 0.75:  # 1 - λ has few digits there, and float64 holds the quotient closely enough
        assert 1 - share == leak


@given(st.floats(-9, 9, **FLOATS))
def test_integrators_keep_d_and_gain_1_minus_d(raw):
    d = build._sigmoid(np.float32([raw]))
    node = build._li(d)
    share = files.STEP_SECONDS / node.tau
    np.testing.assert_allclose([1 - share, node.r * share], [d, 1 - d], rtol=0, atol=2e-16)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_sum_at_the_threshold_fires_and_one_below_does_not(exports, tmp_path, dtype):
    files.write(tmp_path / "out", exports["v1"])
    parts = files.read(tmp_path / "out").parts
    one, eps = np.float32(1), np.finfo(dtype).eps
    inputs = np.array([one, np.nextafter(one, np.float32(2)), 1 - eps / 2, 0.5], dtype)
    for part in (parts["encoder"], parts["blocks.1.spike"]):
        graph = Graph(part, np.dtype(dtype), {})
        fired = graph.step({"input": np.resize(inputs, 32)}, Work())["output"]
        np.testing.assert_array_equal(fired, np.resize([True, True, False, False], 32))
    # The files say the same to any reader of float32 with NIR's own comparison.
    stored = parts["encoder"].nodes["encoder.lif"].v_threshold
    assert stored.dtype == np.float32 and (one > stored).all() and not (np.nextafter(one, np.float32(0)) > stored).any()


def test_the_table_is_the_norm_of_every_token_bit_for_bit(trained, exports):
    model, table = trained["v1"], exports["v1"].hosts[0]
    with torch.no_grad():
        rows = model.encoder.norm(model.encoder.embedding(torch.arange(520)[None]))[0]
    np.testing.assert_array_equal(table.tensors["rows"], rows.numpy())
    assert table.kind == "table" and table.tensors["rows"].dtype == np.float32


def test_graphs_hold_neurons_matrices_scales_and_residuals_as_in_edges(exports, tmp_path):
    files.write(tmp_path / "out", exports["v1"])
    kinds = {}
    for file in sorted((tmp_path / "out").glob("*.nir")):
        graph = nir.read(file)  # the package's own reader and type check
        assert (graph.metadata["dt"], graph.metadata["time_unit"]) == (1e-4, "s")
        kinds |= {name: type(node) for name, node in graph.nodes.items()}
    assert kinds["encoder.lif"] is nir.LIF and kinds["blocks.0.mixer.decay"] is nir.LI
    assert kinds["blocks.0.mixer.keep"] is kinds["blocks.0.mixer.mix"] is nir.Scale
    assert kinds["blocks.1.ffn.hidden"] is kinds["blocks.0.spike"] is nir.Threshold
    mixer = nir.read(tmp_path / "out" / "blocks.0.mixer.nir")
    assert {a for a, b in mixer.edges if b == "output"} == {"stream", "blocks.0.mixer.out"}
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    hosts = {step["kind"]: step for step in manifest["steps"] if step["kind"] != "graph"}
    assert set(hosts) == {"table", "clamp", "attention", "layer_norm", "gelu"}
    assert all(step["equation"] for step in hosts.values())


def test_a_model_of_neurons_and_matrices_is_one_graph(exports, tmp_path):
    files.write(tmp_path / "out", build.single(exports["decay-only"]))
    graph = nir.read(tmp_path / "out" / "model.nir")
    assert len(list((tmp_path / "out").glob("*.nir"))) == 1
    assert {a for a, b in graph.edges if b == "blocks.0.mixer.sum"} == {"input", "blocks.0.mixer.out"}
    assert isinstance(graph.nodes["blocks.0.mixer.out"], nir.Affine)  # the shift of the norm-free stream
    assert list(graph.inputs) == ["input"] and set(graph.outputs) == {"output", "blocks.1.spikes"}


# Refusals, each naming the node.


def test_one_graph_is_refused_for_a_model_with_attention(trained, exports, small_tokenizer, tmp_path, capsys):
    with pytest.raises(InputError, match=r"blocks\.0\.mixer\.attention \(attention, 2 of them\).*model\.paths decay"):
        build.single(exports["v1"])
    save(trained["v1"], small_tokenizer, tmp_path / "model")
    command = ["export", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--format", "nir"]
    assert cli.main([*command, "--target", "decay-only"]) == 2
    error = capsys.readouterr().err
    assert "blocks.0.mixer.attention" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [{"spike_source": "topk"}, {"leak": 1.0}], ids=str)
def test_encoders_without_a_form_are_refused(small_config, change):
    with pytest.raises(InputError, match=r"node encoder\.lif"):
        exported(symboliclight.build(replace(small_config, **change)))


def write_graph(file, nodes, edges):
    graph = nir.NIRGraph(nodes, edges, metadata={"dt": 1e-4}, type_check=False)
    nir.write(file, graph)
    return file


def ends(width=2):
    return {"input": nir.Input({"input": np.array([width])}), "output": nir.Output({"output": np.array([width])})}


def test_a_cycle_is_refused_with_its_nodes(tmp_path):
    nodes = ends() | {"left": nir.Scale(np.ones(2)), "right": nir.Scale(np.ones(2))}
    edges = [("input", "left"), ("left", "right"), ("right", "left"), ("right", "output")]
    with pytest.raises(InputError, match=r"(left -> right -> left|right -> left -> right) form a cycle"):
        files.read_graph(write_graph(tmp_path / "cycle.nir", nodes, edges))


def test_an_unknown_node_is_refused_by_name_and_kind(tmp_path):
    nodes = ends() | {"spiky": nir.IF(r=np.ones(2), v_threshold=np.ones(2))}
    file = write_graph(tmp_path / "if.nir", nodes, [("input", "spiky"), ("spiky", "output")])
    with pytest.raises(InputError, match=r"spiky \(IF\)"):
        files.read_graph(file)
    with h5py.File(file, "r+") as f:  # a kind that the nir package does not know either
        del f["node/nodes/spiky/type"]
        f["node/nodes/spiky/type"] = "Quantum"
    with pytest.raises(InputError, match=r"spiky \(Quantum\)"):
        files.read_graph(file)


def test_damaged_folders_are_refused_by_file_and_node(exports, tmp_path):
    def damaged(change):
        files.write(tmp_path / "out", exports["v1"])
        change(tmp_path / "out")
        with pytest.raises(InputError) as found:
            Executor.load(tmp_path / "out")
        return str(found.value)

    def edit(key, value):
        def change(folder):
            manifest = json.loads((folder / "manifest.json").read_text())
            step = next(s for s in manifest["steps"] if s["name"] == "blocks.0.mixer.norm")
            step[key] = value
            (folder / "manifest.json").write_text(json.dumps(manifest))
        return change

    assert "blocks.0.mixer.norm reads 'nowhere'" in damaged(edit("reads", {"input": "nowhere"}))
    assert "blocks.0.mixer.norm is of kind 'fourier'" in damaged(edit("kind", "fourier"))
    assert "blocks.0.mixer.norm (layer_norm) lacks or misstates 'eps'" in damaged(edit("parameters", {}))
    assert "encoder.nir" in damaged(lambda folder: (folder / "encoder.nir").write_bytes(b"not HDF5"))
    assert "host.safetensors" in damaged(lambda folder: (folder / "host.safetensors").write_bytes(b"12345678"))
    assert "manifest.json" in damaged(lambda folder: (folder / "manifest.json").write_text("{"))
    assert "cannot read" in damaged(lambda folder: (folder / "manifest.json").unlink())
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="is not an exported NIR folder"):
        files.write(tmp_path / "mine", exports["v1"])


def test_a_token_beyond_the_table_is_refused(exports):
    with pytest.raises(InputError, match=r"token 520 is not in encoder\.table"):
        Executor(exports["v1"]).step(520)


@pytest.mark.parametrize(("dialect", "part", "node"), [
    ("snntorch", "blocks.0.memory", "blocks.0.mixer.decay"), ("norse", "memory", "blocks.0.mixer.decay"),
    ("spikingjelly", "memory", "blocks.0.mixer.decay"), ("sinabs", "blocks.1.mixer", "memory"),
])
def test_a_dialect_names_the_node_it_cannot_hold(exports, dialect, part, node):
    with pytest.raises(InputError, match=f"{dialect} cannot hold node {node} of"):
        dialects.rewrite(exports["v1"], dialect, [part])
    with pytest.raises(InputError, match="there is no part decoder; known kinds are"):
        dialects.rewrite(exports["v1"], dialect, ["decoder"])


def test_one_leak_a_population_is_a_dialects_limit(small_config):
    model = symboliclight.build(replace(small_config, learn_neuron=True))
    with torch.no_grad():
        model.encoder.neuron.leak[3] = 0.5
    export = exported(model)
    assert dialects.rewrite(export, "norse", ["encoder"])
    with pytest.raises(InputError, match=r"encoder\.lif .* has 2 values of tau"):
        dialects.rewrite(export, "spikingjelly", ["encoder"])


# The commands.


def save(model, tokenizer, folder):
    checkpoint.save(folder, model.config, model.state_dict(), tokenizer)


def test_export_run_and_compare_from_the_command_line(trained, small_tokenizer, small_shards, tmp_path, capsys):
    save(trained["v1"], small_tokenizer, tmp_path / "model")
    command = ["export", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--format", "nir"]
    assert cli.main([*command, "--data", str(small_shards.path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["graphs"] == 13 and "encoder.clamp" in found["host_nodes"]
    assert 0 < json.loads((tmp_path / "out" / "manifest.json").read_text())["clamp"]["active_share"] < 0.5
    (tmp_path / "text").write_text("春天的风吹过江南的小镇, and the light fell on the water.", encoding="utf-8")
    command = ["neuro", "run", str(tmp_path / "out"), "--text", str(tmp_path / "text"), "--json", "--against",
               str(tmp_path / "model"), "--out", str(tmp_path / "result.json")]
    assert cli.main(command) == 0
    found = json.loads(capsys.readouterr().out)
    (text,) = found["texts"]
    steps = found["steps"][str(tmp_path / "text")]
    assert text["differ"]["float64"]["spikes"] == 0 and text["tokens"] == len(steps) > 10
    assert text["events"] == sum(sum(step["active"].values()) for step in steps) > 0
    assert json.loads((tmp_path / "result.json").read_text())["texts"] == found["texts"]
    save(trained["decay-only"], small_tokenizer, tmp_path / "other")
    assert cli.main([*command[:-3], str(tmp_path / "other")]) == 2
    assert "is not the checkpoint that was exported" in capsys.readouterr().err


def test_parts_for_a_dialect_are_not_a_model(trained, small_tokenizer, tmp_path, capsys):
    save(trained["v1"], small_tokenizer, tmp_path / "model")
    command = ["export", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--format", "nir"]
    assert cli.main([*command, "--dialect", "snntorch", "--parts", "encoder,ffn"]) == 0
    assert {f.name for f in (tmp_path / "out").glob("*.nir")} == {"encoder.nir", "blocks.0.ffn.nir", "blocks.1.ffn.nir"}
    assert cli.main(["neuro", "run", str(tmp_path / "out")]) == 2
    assert "single parts for snntorch" in capsys.readouterr().err

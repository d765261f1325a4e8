"""Records of other services as traces. The rows here are made up in the columns of each record; none is of one."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from atoll import data
from atoll.catalog.models import parse_models_csv
from atoll.model.errors import FieldError, SourceError
from sims.traces.job import TraceJob
from sims.traces.loaders.known import LOADERS
from sims.traces.loaders.records import VIDEO_SHARE, Record
from sims.traces.reading import Rules
from sims.traces.sorting import in_order
from sims.traces.variants import base_of, spec_of
from tests.unit.traces_made import jobs, written

CATALOGUE = {model.model_id: model for model in parse_models_csv(data.models_csv(), "models.csv")}
DIFFUSION_HEAD = (
    "arrival_s,gmt_create,predict_type,predict_status,exec_time_seconds,groupId,prompt_length,negative_prompt_length,num_images_per_prompt,"
    "num_inference_steps,checkpoint_model_version_id,num_lora,loras,lora_scales,style\n"
)


def diffusion_row(arrival_s: int, tenant: str, model: str, loras: str = "", scales: str = "", status: str = "SUCCEED") -> str:
    return f"{arrival_s},2000-01-01 00:00:00,TXT_2_IMG,{status},9.0,{tenant},5.0,,2.0,30.0,{model},{loras.count('L')},{loras},{scales},\n"


def loaded(
    kind: str, path: Path, *, seed: int = 0, skip_bad: bool = False, video_share: float = VIDEO_SHARE
) -> tuple[list[TraceJob], Record]:
    record = Record(path=path, rules=Rules(skip_bad=skip_bad), seed=seed, catalogue=CATALOGUE, video_share=video_share)
    found = LOADERS[kind].jobs(record)
    return list(found if LOADERS[kind].in_order else in_order(found)), record


def test_diffusion_keeps_what_the_record_says(tmp_path: Path) -> None:
    text = DIFFUSION_HEAD + diffusion_row(0, "GX", "MX") + diffusion_row(7, "GY", "MY", "LA|LB", "0.8|-0.5")
    text += diffusion_row(7, "GX", "", status="PENDING") + diffusion_row(9, "GX", "MX", status="FAILED")
    found, record = loaded("diffusion", written(tmp_path, text))
    assert [job.arrival_us for job in found] == [0, 7_000_000, 9_000_000]
    assert [job.tenant for job in found] == ["gx", "gy", "gx"]
    assert [job.measured_us for job in found] == [9_000_000, 9_000_000, 0]
    assert found[0].model_id == found[2].model_id != found[1].model_id
    assert (found[0].width, found[0].height, found[0].origin) == (found[2].width, found[2].height, found[2].origin)
    base = base_of(found[1].model_id)
    assert [(use.adapter_id, use.scale_milli) for use in found[1].adapters] == [(f"la.{base}", 800), (f"lb.{base}", -500)]
    assert not record.skipped.rows


def test_diffusion_takes_each_base_model_for_one_that_there_is(tmp_path: Path) -> None:
    """Pictures of many kinds and some films; what is asked for can be made; the same seed takes the same."""
    path = written(tmp_path, DIFFUSION_HEAD + "".join(diffusion_row(n, f"G{n % 50}", f"M{n}") for n in range(400)))
    found, _ = loaded("diffusion", path)
    for job in found:
        spec = spec_of(job.model_id, CATALOGUE)
        spec.check_shape(job.shape_with(spec.default_shape).check())
    bases = Counter(base_of(job.model_id) for job in found)
    assert len(bases) > 8 and max(bases.values()) < 200
    assert 0.02 < sum(job.frames > 1 for job in found) / len(found) < 0.2
    assert loaded("diffusion", path)[0] == found
    assert loaded("diffusion", path, seed=1)[0] != found
    assert not any(job.frames > 1 for job in loaded("diffusion", path, video_share=0.0)[0])
    many = {job.model_id for job in loaded("diffusion", path, video_share=0.5)[0] if job.frames > 1}
    assert {job.model_id for job in found if job.frames > 1} < many, "a model that makes films makes them at every larger share"


def test_azure_keeps_arrivals(tmp_path: Path) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n2000-01-01 18:17:03.9799600,48,1\n2000-01-01 18:17:04.0319600,31,8\n"
    found, _ = loaded("azure-llm", written(tmp_path, text))
    assert [job.arrival_us for job in found] == [0, 52_000]


@pytest.mark.parametrize("dist", ["Gamma", "Weibull"])
def test_servegen_comes_at_the_clients_rate(tmp_path: Path, dist: str) -> None:
    rows = [f"{client},{window * 600 + 1200},2.0,1.0,{dist},1.0,0.5\n" for client in range(3) for window in range(3)]
    found, _ = loaded("servegen", written(tmp_path, "client,t_s,rate_rps,cv,dist,p1,p2\n" + "".join(rows)))
    assert len(found) == pytest.approx(3 * 3 * 600 * 2.0, rel=0.05)
    assert [job.arrival_us for job in found] == sorted(job.arrival_us for job in found)
    assert found[-1].arrival_us < 1_800_000_000


def test_mooncake_takes_one_beginning_for_one_model(tmp_path: Path) -> None:
    rows = "".join(f'{{"timestamp": {n * 40}, "input_length": 9, "output_length": 1, "hash_ids": [0, {n % 5}, {n}]}}\n' for n in range(20))
    found, _ = loaded("mooncake", written(tmp_path, rows, "record.jsonl"))
    assert found[3].arrival_us == 120_000
    assert len({job.session for job in found}) == 5
    assert all(len({job.model_id for job in found if job.session == session}) == 1 for session in {job.session for job in found})


def test_openb_keeps_gangs_and_durations_and_leaves_out_what_has_no_gpu(tmp_path: Path) -> None:
    head = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec,qos,pod_phase,creation_time,deletion_time,scheduled_time\n"
    rows = "a,9,9,1,460,,LS,Running,50,90,60\nb,9,9,0,0,,LS,Running,2,9,2\nc,9,9,8,1000,,BE,Pending,10,90,\n"
    found, _ = loaded("openb", written(tmp_path, head + rows))
    assert [(job.arrival_us, job.gang_size, job.measured_us) for job in found] == [(10_000_000, 8, 0), (50_000_000, 1, 30_000_000)]


def test_philly_is_put_in_order(tmp_path: Path) -> None:
    rows = "2000-01-01 07:01:55,66.0,1,66.0,c1\n2000-01-01 06:13:03,29.0,4,29.0,c2\n2000-01-02 00:00:00,5.0,16,80.0,c2\n"
    found, _ = loaded("philly", written(tmp_path, f"timestamp,duration,num_gpus,gpu_time,cluster\n{rows}"))
    assert [(job.arrival_us, job.gang_size, job.tenant) for job in found] == [(0, 4, "c2"), (2_932_000_000, 1, "c1")]


@pytest.mark.parametrize("kind", sorted(LOADERS))
def test_another_record_is_refused_with_what_it_lacks(tmp_path: Path, kind: str) -> None:
    with pytest.raises((SourceError, FieldError), match=r"expected .*; is it another record \(--from\)\?"):
        loaded(kind, written(tmp_path, "a,b\n1,2\n"))


def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path: Path) -> None:
    text = DIFFUSION_HEAD + diffusion_row(0, "GX", "MX") + diffusion_row(1, "GX", "MX", "LA", "1|2") + "nan" + diffusion_row(2, "GX", "MX")
    path = written(tmp_path, text)
    with pytest.raises(SourceError, match=r":3: loras is 'LA': expected at most 8 LoRAs between bars"):
        loaded("diffusion", path)
    found, record = loaded("diffusion", path, skip_bad=True)
    assert len(found) == 1
    assert record.skipped.rows == {"loras": 1, "arrival_s": 1}


def test_records_say_where_they_are_from_and_what_is_made_up() -> None:
    for loader in LOADERS.values():
        assert loader.meta.source and loader.meta.licence and loader.meta.synthesised


def test_sorting_in_pieces_gives_what_sorting_gives(tmp_path: Path) -> None:
    shuffled = [job for _, job in sorted(enumerate(jobs(1_000)), key=lambda pair: pair[0] * 7_919 % 1_000)]
    assert list(in_order(iter(shuffled), piece_jobs=130)) == list(jobs(1_000))

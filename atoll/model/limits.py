"""The bounds of what Atoll accepts, each with the reason for its value.

Decides sizes only; who refuses what, and how, is said where the bound is used.
"""

from __future__ import annotations

from typing import Final

# Prompts of the longest text encoders in use hold some thousand tokens; 16 KiB is four times that and keeps 100,000 queued jobs in memory.
PROMPT_BYTES: Final = 16 * 1024
# 16K is the largest output any model of the catalogue makes (after up-scaling); 8 is the latent factor of every VAE in it.
SIDE_PX_MIN: Final = 8
SIDE_PX_MAX: Final = 16_384
# 64 megapixels a frame: beyond it no GPU of the catalogue holds the activations.
FRAME_PX_MAX: Final = 64 * 1024 * 1024
# Two minutes at 60 frames a second.
FRAMES_MAX: Final = 7_200
# Pixels of a job in all, over its frames and results: two minutes of 4K at 60 frames a second are 60 of these 69 thousand million, and no
# model makes a tenth of it.
JOB_PX_MAX: Final = 64 * 1024**3
STEPS_MAX: Final = 1_000
CFG_PASSES_MAX: Final = 3
BATCH_MAX: Final = 32
GUIDANCE_MILLI_MAX: Final = 100_000
ADAPTERS_MAX: Final = 8
ADAPTER_SCALE_MILLI_MAX: Final = 10_000
# Adapters that a fleet knows: a list of all of them, 250 bytes each, still fits gRPC's default message of 4 MiB.
ADAPTERS_IN_FLEET_MAX: Final = 10_000
# As models on a disk: an adapter is a hundredth of its base, so a node holds as many of one as of the other.
ADAPTERS_PER_NODE_MAX: Final = 2_000
# Loaded on one replica, active or not. Twice what one job may use, so that two jobs of other adapters can take turns without a load;
# at 75 MB each (FLUX.1, rank 32) that is 1.2 GB of a GPU beside a base of 34 GB, and a layer's list of inactive adapters stays short.
ADAPTERS_PER_REPLICA_MAX: Final = 16
ADAPTER_MODELS_MAX: Final = 64
# Forms of compiled code that a node holds: a hundred models in five sizes each, 16 KB of a report.
FORMS_PER_NODE_MAX: Final = 512
# Eight times the largest rank in common use.
ADAPTER_RANK_MAX: Final = 1_024
# A strength of 1 keeps nothing of an input image but its size.
STRENGTH_MILLI_MAX: Final = 1_000
GANG_SIZES: Final = (1, 2, 4, 8)
CONSTRAINT_NAMES_MAX: Final = 256
# Sites of one push: seven times the reference fleet. More are served by demand, not by an operator's foresight.
PUSH_SITES_MAX: Final = 256
# A client that wants an answer later than this wants a batch: 7 days.
DEADLINE_MS_MAX: Final = 7 * 24 * 3600 * 1000
PRICE_USD_MICROS_MAX: Final = 1_000_000_000_000
# Jobs in one SubmitBatch: the message and its answer stay well under gRPC's 4 MiB.
BATCH_JOBS_MAX: Final = 1_000
# The queue in all and per tenant; beyond it Submit answers RESOURCE_EXHAUSTED.
QUEUED_JOBS_MAX: Final = 1_000_000
QUEUED_JOBS_PER_TENANT_MAX: Final = 500_000
SITES_MAX: Final = 10_000
# In one look at a fleet: more are no news to anybody.
ALARMS_MAX: Final = 256
POOLS_PER_SITE_MAX: Final = 64
NODES_PER_POOL_MAX: Final = 4_096
GPUS_PER_NODE_MAX: Final = 72
# Those of one fleet: one leads, and two or three stand by.
ORCHESTRATORS_MAX: Final = 64
MODELS_MAX: Final = 20_000
MODELS_PER_NODE_MAX: Final = 2_000
REPLICAS_PER_SLOT_MAX: Final = 64
# Copies that a site may be asked to hold ahead of demand: with their models' figures a snapshot of as many is 2 MB, half of gRPC's limit.
DESIRED_PER_SITE_MAX: Final = 2_048
# Sources that one fetch reads at once, the origin store included: four streams fill any uplink that one of them does not.
FETCH_SOURCES_MAX: Final = 4
ATTEMPTS_PER_JOB_MAX: Final = 32
EVENTS_PER_MESSAGE_MAX: Final = 1_000
REASON_CHARS_MAX: Final = 500
# Candidates kept with a decision: the chosen and the 8 next best.
CANDIDATES_KEPT: Final = 9
PAGE_SIZE_MAX: Final = 1_000
# Lines of the audit that are kept: at one a second, eleven days of uninterrupted incidents; of usual operation, years.
AUDIT_LINES_MAX: Final = 1_000_000
# One chunk of an upload or download: a quarter of gRPC's default message limit.
CHUNK_BYTES: Final = 1024 * 1024
# Largest input file of a job.
INPUT_BYTES_MAX: Final = 512 * 1024 * 1024
INPUTS_MAX: Final = 16
# An image that a generation begins with: a photograph of 64 megapixels as PNG takes some 100 MB.
IMAGE_BYTES_MAX: Final = 128 * 1024 * 1024
RESULT_ARTIFACTS_MAX: Final = 64
LOG_LINES_MAX: Final = 2_000
# The last millisecond of the year 9999, the last that RFC 3339 can write.
WALL_MS_MAX: Final = 253_402_300_799_999
# A prediction of more than a year is as good as never, whatever it is of: nobody waits for it, and the next one is better. Physics says no
# more, so that sums of predictions, and their products with whatever weighs them, stay far from leaving int64.
PREDICTED_US_MAX: Final = 2**45
# Memory that a job is said to need, likewise: more than any GPU may be declared to have, so that it fits none.
NEEDED_BYTES_MAX: Final = 2**60
# Figures of one resource: an exabyte. Larger is a mistake of units.
BYTES_MAX: Final = 10**18
RATE_BYTES_PER_S_MAX: Final = 10**15

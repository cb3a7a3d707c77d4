# make train-demo: the demo model from nothing, stage by stage. What is there is kept, and a stage that was stopped goes on.
# COHORT and RUNS are folders; MORE is passed on to every train.py (MORE="data.num_workers=2").
# The times are those of two free cores of an AMD EPYC (bf16); a GPU is much faster.

RUNS = runs
MORE =
STAGE = $(PY) train.py $(1) out="$(RUNS)" data.root="$(COHORT)" $(MORE)

LISTS = $(COHORT)/split_data/train.json
FACE_1 = $(RUNS)/demo_pipnet_face/model.safetensors
FACE_2 = $(RUNS)/demo_pipnet_face_fine/model.safetensors
FACE_3 = $(RUNS)/demo_pipnet_face_last/model.safetensors
SKULL_1 = $(RUNS)/demo_pipnet_skull/model.safetensors
SKULL = $(RUNS)/demo_pipnet_skull_fine/model.safetensors
READ = $(RUNS)/demo_landmarks.npz
AUTOENCODER = $(RUNS)/demo_autoencoder/model.safetensors
GRAIN = $(RUNS)/demo_grain/model.safetensors
BASE = $(RUNS)/demo_base/model.safetensors
START = $(RUNS)/demo_control_ini.safetensors
CONTROL = $(RUNS)/demo_control/model.safetensors
DECODER = $(RUNS)/demo_guidance_decoder/model.safetensors

.PHONY: train-demo
.NOTPARALLEL:
train-demo: $(VENV)/.dev $(FACE_3) $(READ) $(CONTROL) $(DECODER)  ## train the demo model from nothing, about 6 hours on two cores; it goes on where it stopped
	@echo "done: $(CONTROL)"
	@echo "how good is it: $(PY) evaluate.py configs/evaluate/full.yaml weights=$(CONTROL) landmark_weights=$(SKULL) data.root=$(COHORT)"

$(LISTS): | $(VENV)/.dev
	@echo "--- 1 of 12: the cohort, 5,000 pairs (26 minutes)"
	@$(PY) -m data.cohort "$(COHORT)" num_subjects=5000 seed=1 valid_subjects=250 test_subjects=500 ceiling=true num_workers=2

$(FACE_1): | $(LISTS)
	@echo "--- 2 of 12: the network that reads landmarks off faces, first step (30 minutes)"
	@$(call STAGE,configs/demo/pipnet_face.yaml)

$(FACE_2): | $(FACE_1)
	@echo "--- 3 of 12: the same, second step (30 minutes)"
	@$(call STAGE,configs/demo/pipnet_face_fine.yaml) init="$(FACE_1)"

$(FACE_3): | $(FACE_2)
	@echo "--- 4 of 12: the same, last step (11 minutes)"
	@$(call STAGE,configs/demo/pipnet_face_last.yaml) init="$(FACE_2)"

$(SKULL_1): | $(FACE_1)
	@echo "--- 5 of 12: the network that reads the face's landmarks off skulls, first step (19 minutes)"
	@$(call STAGE,configs/demo/pipnet_skull.yaml) init="$(FACE_1)"

$(SKULL): | $(SKULL_1)
	@echo "--- 6 of 12: the same, second step (25 minutes)"
	@$(call STAGE,configs/demo/pipnet_skull_fine.yaml) init="$(SKULL_1)"

$(READ): | $(SKULL)
	@echo "--- 7 of 12: the landmarks of every skull (3 minutes)"
	@$(PY) -m muti_control.training.predict_landmarks weights="$(SKULL)" data.root="$(COHORT)" out="$@"

$(AUTOENCODER): | $(LISTS)
	@echo "--- 8 of 12: the autoencoder (50 minutes)"
	@$(call STAGE,configs/demo/autoencoder.yaml)

$(GRAIN): | $(AUTOENCODER)
	@echo "--- 9 of 12: grain for what it decodes (6 minutes)"
	@$(call STAGE,configs/demo/grain.yaml) init="$(AUTOENCODER)"

$(BASE): | $(GRAIN)
	@echo "--- 10 of 12: text to face (55 minutes)"
	@$(call STAGE,configs/demo/base.yaml) init="$(GRAIN)"

$(START): | $(BASE)
	@$(PY) tool_add_control.py "$(BASE)" "$@"

$(CONTROL): | $(START) $(READ)
	@echo "--- 11 of 12: skull, landmarks, texture and text to face (90 minutes)"
	@$(call STAGE,configs/demo/control.yaml) init="$(START)" 'landmarks.predicted=["$(READ)"]'

$(DECODER): | $(AUTOENCODER)
	@echo "--- 12 of 12: the small decoder for guidance (14 minutes)"
	@$(call STAGE,configs/demo/guidance_decoder.yaml) init="$(AUTOENCODER)"

# make train-wide: the shipped networks go on with the wider cohort (format 9) and altered skulls, for real heads.
# PEOPLE are drawn, each in three poses, lamps and surfaces. It goes on where it was stopped.
WIDE = wide
PEOPLE = 3000
WIDE_STAGE = $(PY) train.py configs/demo/$(1).yaml out="$(RUNS)" data.root="$(WIDE)" $(MORE)
WIDE_SKULL = $(RUNS)/wide_pipnet_skull/model.safetensors
WIDE_READ = $(RUNS)/wide_landmarks.npz
WIDE_CONTROL = $(RUNS)/wide_control/model.safetensors
WIDE_FACE = $(RUNS)/wide_pipnet_face/model.safetensors

.PHONY: train-wide
train-wide: $(VENV)/.dev $(WIDE_CONTROL) $(WIDE_FACE)  ## train the shipped model further for real heads; it goes on where it stopped
	@echo "done: $(WIDE_CONTROL)"
	@echo "how good is it: $(PY) -m benchmarks.model.altered weights=$(WIDE_CONTROL) landmark_weights=$(WIDE_SKULL) data.root=$(COHORT)"

$(WIDE)/split_data/train_views.json: | $(VENV)/.dev
	@$(PY) -m data.cohort "$(WIDE)" format=9 num_subjects=$(PEOPLE) seed=2 valid_subjects=250 test_subjects=500 views=2 ceiling=true num_workers=2

$(WIDE_SKULL): | $(WIDE)/split_data/train_views.json
	@$(call WIDE_STAGE,wide_pipnet_skull)

$(WIDE_READ): | $(WIDE_SKULL)
	@$(PY) -m muti_control.training.predict_landmarks weights="$(WIDE_SKULL)" data.root="$(WIDE)" data.train=train_views.json out="$@"

$(WIDE_CONTROL): | $(WIDE_READ)
	@$(call WIDE_STAGE,wide_control) 'landmarks.predicted=["$(WIDE_READ)"]'

$(WIDE_FACE): | $(WIDE)/split_data/train_views.json
	@$(call WIDE_STAGE,wide_pipnet_face)

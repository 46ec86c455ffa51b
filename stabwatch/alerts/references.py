"""Sources of thresholds and remedies: papers, and pages of the documentation."""

from __future__ import annotations

PROXIES = (
    "Wortsman et al. 2023, Small-scale proxies for large-scale Transformer training instabilities, arXiv:2309.14322"
)
VIT22B = "Dehghani et al. 2023, Scaling Vision Transformers to 22 Billion Parameters, arXiv:2302.05442"
MUONCLIP = "Kimi Team 2025, Kimi K2 (MuonClip), arXiv:2507.20534"
PALM = "Chowdhery et al. 2022, PaLM, arXiv:2204.02311"
MAXACT = "Sun et al. 2024, Massive Activations in Large Language Models, arXiv:2402.17762"
ZCLIP = "Kumar et al. 2025, ZClip, arXiv:2504.02507"
MEAN_MODE = "Lu 2026, Mean Mode Screaming, arXiv:2605.06169"
GROKKING = "Prieto et al. 2025, Grokking at the edge of numerical stability, arXiv:2501.04697"
SWITCH = "Fedus et al. 2021, Switch Transformers, arXiv:2101.03961"
ADAM = "Molybog et al. 2023, A Theory on Adam Instability in Large-Scale Machine Learning, arXiv:2304.09871"
SDC = "Dixit et al. 2021, Silent Data Corruptions at Scale, arXiv:2102.11245"
ENTROPY = (
    "Zhai et al. 2023, Stabilizing Transformer Training by Preventing Attention Entropy Collapse, arXiv:2303.06296"
)
TANH = "Glorot and Bengio 2010, Understanding the difficulty of training deep feedforward neural networks"
CHAOS = "Schoenholz et al. 2017, Deep Information Propagation, arXiv:1611.01232"
PARCAE = "Parcae, sandyresearch/parcae (stable looped language models)"
RESIDUAL = "Zhang et al. 2019, Fixup Initialization, arXiv:1901.09321"
GHOSTS = "Ghosts of Softmax, arXiv:2603.13552"
SHESHA = "shesha-geometry 0.3.0, rdm_drift"
RELU = "Lu et al. 2019, Dying ReLU and Initialization, arXiv:1903.06733"
CALIBRATED = "docs/detection.md"
LLAMA = "Llama team 2024, The Llama 3 Herd of Models, section 3.3.4, arXiv:2407.21783"
MIXED = "Micikevicius et al. 2017, Mixed Precision Training, arXiv:1710.03740"
OPT = "Zhang et al. 2022, OPT (its logbook: a loss scale that collapses comes with divergence), arXiv:2205.01068"
CODEBOOK = "van den Oord et al. 2017, Neural Discrete Representation Learning, arXiv:1711.00937"

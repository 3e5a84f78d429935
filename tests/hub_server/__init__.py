"""A strict local Hub: as much of huggingface.co's HTTP interface as publishing needs, on loopback, in memory.

It refuses what the real one is documented to refuse (`rules`) and fails on demand (`faults`).
Only what huggingface_hub 2.4 uses is here. Xet storage is not, so clients set
HF_HUB_DISABLE_XET=1 and use the LFS protocol: uploads through hf-xet are not tested.
"""

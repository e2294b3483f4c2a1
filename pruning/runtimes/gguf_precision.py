"""How llama.cpp stores weights: an option, so nothing heavy is imported here."""

from enum import StrEnum


class Precision(StrEnum):
    """How matrices are stored; vectors are float32 in each."""

    f32 = "f32"
    f16 = "f16"
    q8_0 = "q8_0"  # blocks of 32 int8 with a scale; f16 where rows are not made of them
    # llama.cpp's choice for each matrix: blocks of 256 in 4 or 6 bits; where rows are not made of
    # these, blocks of 32 in 5 or 8 bits, or f16
    q4_k_m = "q4_k_m"

from tokenization import vocabulary


def test_ranges_are_those_of_the_paper() -> None:
    assert vocabulary.NUM_TEXT_TOKENS == 32_000
    assert vocabulary.NUM_DISCRETE == 1_024
    assert vocabulary.NUM_BINS == 1_024
    assert vocabulary.CONTINUOUS_OFFSET == 32_000
    assert vocabulary.SEPARATOR == 33_024
    assert vocabulary.VOCABULARY_SIZE == 33_025


def test_the_placeholder_of_patches_is_no_id() -> None:
    assert vocabulary.VOCABULARY_SIZE <= vocabulary.PATCH_PLACEHOLDER <= 0xFFFF

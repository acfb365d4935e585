"""Whether two alike texts say the same or fill one template with two subjects.

They are the same unless one number or letter stands for another (hepatitis B, type II), numbers are
all that differs, or a word that one uses repeatedly is another word in the other. Words are sorted
hashes with their kind in the low bits; in scripts without blanks, words are characters.
"""

import numpy as np
import polars as pl

from datagen.fold_kernel import blend, buffers, compiled, decode, finish, item
from datagen.fold_tables import DENSE, DIGIT, SIZE, tables

_NUMBER, _LETTER = 1, 2  # a word with a digit; a letter, a roman numeral, an operator
_FEW = 4  # words that differ, at which a letter is the subject
_ROMAN = np.array(sorted(map(ord, "ivx")))
_OPERATORS = np.array(sorted(map(ord, "-+*/%<>=!&|^~")))


@compiled
def _contains(sorted_points, point):
    at = np.searchsorted(sorted_points, point)
    return at < len(sorted_points) and sorted_points[at] == point


@compiled
def _is_letter(point):
    latin, greek = 0x61 <= point <= 0x7A, 0x3B1 <= point <= 0x3C9
    return latin or greek or 0x430 <= point <= 0x44F


@compiled
def _word(value, number, letters, roman, operators, first):
    single = letters == 1 and _is_letter(first)
    flags = np.uint64(_NUMBER) if number else np.uint64(0)
    if single or roman or operators:
        flags |= np.uint64(_LETTER)
    return finish(value) & ~np.uint64(3) | flags


@compiled
def _word_rows(data, offsets, classes, roman_points, operator_points, words, ends, digits):  # noqa: C901
    """The words of every text, sorted, and a hash of all its digits in their order."""
    to = 0
    for row in range(len(offsets) - 1):
        at, stop, begin = offsets[row], offsets[row + 1], to
        value, letters, first = np.uint64(1), 0, np.int64(0)
        number, roman, operators = False, True, True
        order = np.uint64(1)
        while at <= stop:
            point, dense, blank = np.int64(0x20), False, True
            if at < stop:
                point, at = decode(data, at)
                blank = point == 0x20
                dense = point >= SIZE or item(classes, point) & DENSE != 0
            else:
                at += 1
            if letters and (blank or dense):
                words[to] = _word(value, number, letters, roman, operators, first)
                to += 1
                value, letters = np.uint64(1), 0
                number, roman, operators = False, True, True
            if blank:
                continue
            digit = point < SIZE and item(classes, point) & DIGIT != 0
            if digit:
                order = blend(order, np.uint64(point))
            if dense:
                words[to] = _word(
                    blend(np.uint64(1), np.uint64(point)), digit, 1, False, False, point
                )
                to += 1
                continue
            first = point if letters == 0 else first
            letters += 1
            value = blend(value, np.uint64(point))
            number |= digit
            roman = roman and _contains(roman_points, point)
            operators = operators and _contains(operator_points, point)
        words[begin:to].sort()
        ends[row + 1], digits[row] = to, order


@compiled
def _same_subject(words, i, end_i, j, end_j, same_digits):  # noqa: C901
    left = right = numbers_left = numbers_right = others = 0
    letter_left = letter_right = repeated_left = repeated_right = False
    while i < end_i or j < end_j:
        take_i = j >= end_j or (i < end_i and words[i] <= words[j])
        value = words[i] if take_i else words[j]
        in_one = in_other = 0
        while i < end_i and words[i] == value:
            in_one, i = in_one + 1, i + 1
        while j < end_j and words[j] == value:
            in_other, j = in_other + 1, j + 1
        if in_one == in_other:
            continue
        number, letter = value & np.uint64(_NUMBER) != 0, value & np.uint64(_LETTER) != 0
        others += not number
        if in_one > in_other:
            left += in_one - in_other
            numbers_left += number
            letter_left |= letter
            repeated_left |= not number and in_other == 0 and in_one > 1
        else:
            right += in_other - in_one
            numbers_right += number
            letter_right |= letter
            repeated_right |= not number and in_one == 0 and in_other > 1
    if not same_digits and ((numbers_left and numbers_right) or others == 0):
        return False
    if left + right <= _FEW and letter_left and letter_right:
        return False
    return not (repeated_left and repeated_right)


@compiled
def _compare(words, ends, digits, pairs, result):
    for n in range(len(pairs)):
        i, j = pairs[n, 0], pairs[n, 1]
        same = digits[i] == digits[j]
        result[n] = _same_subject(words, ends[i], ends[i + 1], ends[j], ends[j + 1], same)


def same_subject(folded: pl.Series, pairs: np.ndarray) -> np.ndarray:
    """For pairs [n, 2] of positions of alike folded texts: whether they differ in wording only."""
    rows, local = np.unique(pairs, return_inverse=True)
    data, offsets = buffers(folded.gather(rows))
    words = np.empty(int(offsets[-1] - offsets[0]) + len(rows), np.uint64)
    ends, digits = np.zeros(len(offsets), np.int64), np.empty(len(rows), np.uint64)
    _word_rows(data, offsets, tables().classes, _ROMAN, _OPERATORS, words, ends, digits)
    result = np.empty(len(pairs), np.bool_)
    _compare(words, ends, digits, local.reshape(-1, 2), result)
    return result

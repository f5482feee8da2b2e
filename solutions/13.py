"""Right and wrong answers to the exercises of chapter 13."""

import struct
import zlib

from zolab.lab.exercises import Solution, Wrong


def read_coefficients(data):
    found, crc = [], 0
    for at in range(0, len(data) - 15, 16):
        stored, step, lr, g = struct.unpack_from("<IIff", data, at)
        crc = zlib.crc32(data[at + 4 : at + 16], crc)
        if crc != stored:
            break
        found.append(g)
    return found


def torn_is_whole(data):
    found = read_coefficients(data)
    tail = data[len(data) // 16 * 16 :]
    if tail:
        found.append(struct.unpack("<IIff", tail.ljust(16, b"\0"))[3])
    return found


def no_checksum(data):
    return [
        struct.unpack_from("<IIff", data, at)[3] for at in range(0, len(data) - 15, 16)
    ]


def each_alone(data):
    found = []
    for at in range(0, len(data) - 15, 16):
        stored, step, lr, g = struct.unpack_from("<IIff", data, at)
        if zlib.crc32(data[at + 4 : at + 16]) != stored:
            break
        found.append(g)
    return found


def with_logged_lr(w, records, now):
    for z, lr, g in records:
        w = w - lr * g * z
    return w


def with_current_lr(w, records, now):
    return with_logged_lr(w, [(z, now, g) for z, _, g in records], now)


def with_first_lr(w, records, now):
    return with_logged_lr(w, [(z, records[0][1], g) for z, _, g in records], now)


def decayed(w, records, wd):
    for z, lr, g in records:
        w = (1 - lr * wd) * w - lr * g * z
    return w


def never_decayed(w, records, wd):
    return decayed(w, records, 0.0)


def decayed_after(w, records, wd):
    for z, lr, g in records:
        w = (1 - lr * wd) * (w - lr * g * z)
    return w


def decayed_without_lr(w, records, wd):
    for z, lr, g in records:
        w = (1 - wd) * w - lr * g * z
    return w


SOLUTIONS = {
    "reader": Solution(
        right=read_coefficients,
        wrong={
            "torn": Wrong(
                torn_is_whole,
                "you took a half record as a record. Its write died, so its step was "
                "never applied, and the missing bytes are not zeros: cut it",
            ),
            "no checksum": Wrong(
                no_checksum,
                "one log has a flipped bit in a whole record, and you used it: compare "
                "the stored crc before you believe the rest",
            ),
            "each alone": Wrong(
                each_alone,
                "you begin each crc at 0. It goes on from the record before, which is "
                "how a missing or swapped record is seen, too",
            ),
        },
    ),
    "lr": Solution(
        right=with_logged_lr,
        wrong={
            "current": Wrong(
                with_current_lr,
                "you used the lr that the optimizer has now for steps that were taken "
                "with another. The schedule has moved on; the log says what it was",
            ),
            "first": Wrong(
                with_first_lr,
                "you used the first record's lr for all: lr is logged with every step "
                "because it may change with every step",
            ),
        },
    ),
    "decay": Solution(
        right=decayed,
        wrong={
            "skipped": Wrong(
                never_decayed,
                "you skipped the decay. It is in the header, not in the records, and "
                "it moves a weight even in a step whose coefficient is 0",
            ),
            "after": Wrong(
                decayed_after,
                "you decayed the step that was just taken as well: equation (1) "
                "multiplies the old weight only",
            ),
            "without lr": Wrong(
                decayed_without_lr,
                "decoupled decay is lr times weight_decay a step; yours is 1 / lr "
                "times as strong",
            ),
        },
    ),
}

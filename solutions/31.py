"""Right and wrong answers to the exercises of chapter 31."""

from zolab.lab.exercises import Solution, Wrong


def tokens_needed(b, flops, rate, n, slack):
    load = b / rate  # seconds a weight
    compute = 2 * n / flops  # seconds a weight and token
    return load / (slack * compute)


def added(b, flops, rate, n, slack):
    return (b / rate) / ((slack - 1) * 2 * n / flops)


def no_slack(b, flops, rate, n, slack):
    return tokens_needed(b, flops, rate, n, 1)


def one_probe(b, flops, rate, n, slack):
    return tokens_needed(b, flops, rate, 1, slack)


def twice(b, flops, rate, n, slack):
    return 2 * tokens_needed(b, flops, rate, n, slack)


def moved_once(x, order, home, w, z, eps):
    for name in order:
        slot = home[name]
        x = x * (w[slot] + eps * z[slot]) + 1
    return x


def moved_at_each_visit(x, order, home, w, z, eps):
    w = dict(w)
    for name in order:
        slot = home[name]
        w[slot] += eps * z[slot]
        x = x * w[slot] + 1
    return x


def drawn_again(x, order, home, w, z, eps):
    for name in order:
        x = x * (w[home[name]] + eps * z[name]) + 1
    return x


def first_visit_only(x, order, home, w, z, eps):
    seen = set()
    for name in order:
        slot = home[name]
        x = x * (w[slot] + (slot not in seen) * eps * z[slot]) + 1
        seen.add(slot)
    return x


def with_its_own_lr(w, records, now):
    for z, lr, g in records:
        w = w - lr * g * z
    return w


def with_the_next_lr(w, records, now):
    lrs = [lr for _, lr, _ in records[1:]] + [now]
    for (z, _, g), lr in zip(records, lrs, strict=True):
        w = w - lr * g * z
    return w


def never_flushed(w, records, now):
    return with_its_own_lr(w, records[:-1], now)


def flushed_with_now(w, records, now):
    z, _, g = records[-1]
    return never_flushed(w, records, now) - now * g * z


def late_and_next_lr(w, records, now):
    lrs = [lr for _, lr, _ in records[1:]]
    for (z, _, g), lr in zip(records[:-1], lrs, strict=True):
        w = w - lr * g * z
    return w


SOLUTIONS = {
    "threshold": Solution(
        right=tokens_needed,
        wrong={
            "sum": Wrong(
                added,
                "you added load and computing. With two slots they run at the same "
                "time: a step takes the longer one, so far fewer tokens are enough",
            ),
            "slack": Wrong(
                no_slack,
                "you asked where nothing waits at all. A step may take slack times "
                "its computing, so the load may be that much longer",
            ),
            "one probe": Wrong(
                one_probe,
                "one read serves all n probes of the step: computing is n forward "
                "passes for one load",
            ),
            "twice": Wrong(
                twice,
                "twice too many. Either you counted the way back, which has a lane of "
                "its own, or one operation a weight and token: it is two, multiply "
                "and add",
            ),
        },
    ),
    "tied": Solution(
        right=moved_once,
        wrong={
            "twice": Wrong(
                moved_at_each_visit,
                "you move a tied weight at every visit, so that the second one sees "
                "w + 2 eps z. A slot moves once a probe, however often it is used",
            ),
            "drawn again": Wrong(
                drawn_again,
                "you use the visited name's direction. Two names for one tensor are "
                "one slot with one direction; a resident model cannot move it two ways",
            ),
            "first": Wrong(
                first_visit_only,
                "your second visit sees the weight that was not moved. The probe is "
                "the moved model as a whole",
            ),
        },
    ),
    "flush": Solution(
        right=with_its_own_lr,
        wrong={
            "next lr": Wrong(
                with_the_next_lr,
                "your updates take the lr of the step that carries them out. It "
                "belongs to the step whose losses made g: keep lr * g * z, not g * z",
            ),
            "no flush": Wrong(
                never_flushed,
                "you lose the last update: no visit comes after it. Take what is due "
                "once more after the loop",
            ),
            "flush lr": Wrong(
                flushed_with_now,
                "all but the last update are right. The flush, too, uses the lr of "
                "the step that it completes, not the scheduler's present one",
            ),
            "unchanged": Wrong(
                late_and_next_lr,
                "that is the broken streamer: it uses the next step's lr and loses the "
                "last update",
            ),
        },
    ),
}

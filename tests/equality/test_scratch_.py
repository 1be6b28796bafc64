"""Collects all failures."""
import os, re, time
from collections import Counter, defaultdict
from equality.test_machine import *
from equality import test_machine as tm
from hypothesis import Phase
SKIP = os.environ.get("SKIP", "@@@")
class Collector(Player):
    log = []
    found = defaultdict(list)
    n = 0
    t = Counter()
    def begin(self):
        self.log = []
        t=time.time(); super().begin(); self.t["begin"] += time.time()-t
    def play(self, connection, act):
        if re.search(SKIP, act.sql): return
        t=time.time()
        said = self.yard.do(self._play(self.ground.connections[connection], act))
        if not said or "concurrently" in act.sql: self.costs.add(act.cost)
        self.t["play"] += time.time()-t
        self.log.append(f"{connection}: {act!r} -> {said[:60]}")
    def give_back(self, thoroughly):
        self.n += 1
        t=time.time()
        try:
            super().give_back(thoroughly=thoroughly)
        except Exception as e:
            key = str(e).splitlines()
            text = "\n".join(key[:12])
            short = re.sub(r"\d+", "N", text)[:110]
            self.found[short].append((text, list(self.log)))
            self.costs = set()
            self.yard.do(self.ground.restore())
        self.t["back" + str(thoroughly)] += time.time()-t
        self.log = []
@pytest.fixture(scope="module", params=[True, False], ids=["superuser", "ordinary role"])
def player(request, tmp_path_factory):
    own = request.param
    recipe, tables = (ALL, [*DEPOT, *SHOP, *VAULT]) if own else (SIMPLE, [*DEPOT, *SHOP])
    with yard_on(server_of(request), tmp_path_factory.mktemp("ground"), recipe, own=own) as yard:
        yield Collector(yard, tables, own=own)
def test_all(player):
    t=time.time()
    s = settings(max_examples=PROGRAMS, stateful_step_count=int(os.environ.get("STEPS","15")), deadline=None, derandomize=False, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    run_state_machine_as_test(machine_of(player), settings=s)
    print("programs", player.n, "in", time.time()-t, {k: round(v,1) for k,v in player.t.items()})
    for what, number in sorted(player.tally.items()): print(number, what)
    for what, number in player.reasons.most_common(40): print(number, what[:200])
    for short, all_ in sorted(player.found.items(), key=lambda x: -len(x[1])):
        print("=======", len(all_), "times")
        text, log = min(all_, key=lambda x: len("".join(x[1])))
        print(text[:1500])
        print("   ---"); print("\n".join("   " + l[:300] for l in log))
    player.found.clear()

import time
from equality.test_machine import ALL, yard_on, server_of, used
import cProfile, pstats
def test_p(request, tmp_path_factory):
    with yard_on(server_of(request), tmp_path_factory.mktemp("ground"), ALL, own=True) as yard:
        g = yard.ground
        async def go():
            from equality.dumps import Observer
            for i in range(4):
                def lap(what, t=[time.time()]):
                    n=time.time(); print(what, round((n-t[0])*1000)); t[0]=time.time()
                lap("-")
                await g._open.aclose(); lap("close")
                await g._on_server(f"drop database {g.database} with (force)"); lap("drop")
                await g._make_database(g._template); lap("create")
                await g._settle(); lap("settle")
                await Observer.of(g.superuser, g.schemas); lap("  observer")
                c = await g._connection(0); await c.close(); lap("   connection")
                await g.differences(); lap("differences")
                await used(g, g.connections[0]); lap("used")
                await g.dumps(); lap("dump")
                await g.recycle(); lap("recycle")
        yard.do(go())

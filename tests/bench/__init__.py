"""What the tunnel costs, measured side by side: `python -m tests.bench --help`. Nothing here is collected by pytest,
and no time is ever asserted.

    __main__    the command
    plan        which clients run which workload, and what is read off it
    stage       realm, Dante, servers, all in processes of their own
    client      one run of one client: the process that is measured
    workloads   what every client runs, the same for all
    ceiling     the same for GSS-API alone
    load        how busy the proxy is meanwhile
    servers     source, sink and echo, behind the proxy
    gsspeer     a proxy's end that wraps before the clock starts and unwraps after it has stopped
    report      medians, ratios, tables
"""

"""
A page to play with runs side by side, in a browser on this machine:

    python -m extras.play out/shakespeare_gpt out/shakespeare_pacing out/vit_mnist [--pretrained smollm2]

- Write: every run continues one text; each token has the likeliest others, and the text can go on from any of them
- See: of a text, its loss as it is read, what influenced each prediction, attention, the pictures of a model file
- Draw: what runs on images make of a picture or a caption
- Watch: the curves of runs that are training, and a sample of each checkpoint

The page asks the contract in harness/arch.py, so an architecture needs nothing of its own here.  It is served to this machine
only, to pages from itself only; a request names runs by their number, and is bounded.  A checkpoint that changes is read again.
"""

import base64
import hashlib
import json
import re
import socket
from pathlib import Path
from types import SimpleNamespace

import torch

from extras.play_parts import PARTS, SEEN, Run, reported, use_of, watch
from harness import Arguments, UserError, command, device, schema

PAGE = Path(__file__).with_suffix('.html')
BYTES = 1 << 19             # of a request, at most
STREAMS = 16                # requests that are answered at once, at most
LONGEST = 10_000            # characters of a text to continue, at most

# {setting of a request: (kind in harness/schema.py, default, smallest, largest)}; of a text, the number of characters
SETTINGS = {'text': ('text', '', 0, LONGEST), 'image': ('text', '', 0, BYTES), 'captions': ('text', '', 0, 2000),
            'count': ('count', 200, 1, 2000), 'temperature': ('number', 0.8, 0, 10), 'top_k': ('count', 50, 0, 10 ** 6),
            'top_p': ('number', 1.0, 1e-6, 1), 'seed': ('count', 1337, 0, 2 ** 32 - 1), 'last': ('bool', False, 0, 1)}


def parse(body, runs):
    """(the numbers of runs, the settings) of a request.  Raises UserError."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError('the request is not JSON: reload the page') from None
    found = found if isinstance(found, dict) else {}
    for name, (kind, _, least, most) in SETTINGS.items():       # the words of the page, not of its code
        if kind in ('count', 'number') and type(v := found.get(name)) in (int, float) and not least <= v <= most:
            raise UserError(f'{name}={v:,} must be {least:,} to {most:,}')
    schema.check(found, {'runs': 'counts', 'ids?': 'counts'} | {f'{name}?': kind for name, (kind, *_) in SETTINGS.items()},
                 'the request', 'reload the page')
    if unknown := found.keys() - SETTINGS.keys() - {'runs', 'ids'}:
        raise UserError(f'the request has the unknown setting {min(unknown)!r:.40}: reload the page')
    numbers = found['runs']
    if not numbers or len(set(numbers)) < len(numbers) or max(numbers) >= len(runs):
        raise UserError(f'the runs {numbers!r:.40} must be different numbers from 0 to {len(runs) - 1}, at least one')
    values = {name: default if found.get(name) is None else found[name] for name, (_, default, *_) in SETTINGS.items()}
    for name, (kind, *_, most) in SETTINGS.items():
        if kind == 'text' and len(values[name]) > most:
            raise UserError(f'{name} has {len(values[name]):,} characters: at most {most:,} are read')
    ids = found.get('ids') or []
    if len(ids) > SETTINGS['count'][3]:
        raise UserError(f'the text has {len(ids):,} tokens after its start: at most {SETTINGS["count"][3]:,} are read')
    return numbers, SimpleNamespace(ids=ids, **values)


def respond(part, run, request):
    """What a part of the page shows of a run, one dict after the other; the last may be an error."""
    found = {}
    with reported(found):
        loaded = run.load(request.last)
        if part not in use_of(loaded)['parts']:
            raise UserError(f'{run.name} has no part in this: {use_of(loaded)["note"] or "choose another run"}')
        yield {'step': loaded.content['step']}
        yield from PARTS[part](loaded, request)
    if found:
        yield found


def lines(part, runs, numbers, request, ended):
    """The answers of runs in turn, as lines of JSON, each with the number of its run; the last of each has 'done'.  ended():
    whether the server is to end."""
    open_ = {i: respond(part, runs[i], request) for i in numbers}
    try:
        while open_ and not ended():
            for i in [*open_]:
                with torch.no_grad():       # for each alone, because the next one may be computed by another thread
                    item = next(open_[i], None)
                if item is None:
                    del open_[i]
                yield line({'run': i, **({'done': True} if item is None else item)})
    finally:
        for answers in open_.values():
            answers.close()


def line(item):
    try:
        return json.dumps(item, allow_nan=False) + '\n'
    except ValueError:
        return json.dumps({'run': item['run'], 'error': 'the model computed a number that is not finite'}) + '\n'


def application(runs, port):
    """The ASGI application.  runs: [Run].  port: of its address."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.responses import HTMLResponse, JSONResponse, StreamingResponse
    from starlette.routing import Route
    page = PAGE.read_text(encoding='utf-8')
    hashes = {tag: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
              for tag, content in re.findall(r'<(style|script)>(.*?)</\1>', page, re.S)}
    policy = (f"default-src 'none'; connect-src 'self'; img-src data: blob:; style-src 'sha256-{hashes['style']}'; script-src "
              f"'sha256-{hashes['script']}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    headers = {'Content-Security-Policy': policy, 'X-Content-Type-Options': 'nosniff', 'Referrer-Policy': 'no-referrer',
               'Cache-Control': 'no-store'}
    origins = {f'http://{host}:{port}' for host in ('127.0.0.1', 'localhost')}
    answering = []

    class Answer(StreamingResponse):
        """A response that is counted until its end, also when the browser closes it."""

        async def __call__(self, scope, receive, send):
            try:
                await super().__call__(scope, receive, send)
            finally:
                answering.remove(self)

    def refuse(status, sentence):
        return JSONResponse({'error': sentence}, status, headers)

    def show(request):
        return HTMLResponse(page, headers=headers)

    def list_runs(request):
        return JSONResponse({'runs': [run.about() for run in runs], 'longest': SEEN}, headers=headers)

    def list_rows(request):
        return JSONResponse([{} if run.pretrained else watch(run) for run in runs], headers=headers)

    async def post(request):
        part = request.path_params['part']
        if part not in PARTS:
            return refuse(404, f'there is no part {part!r:.40}')
        if request.headers.get('origin', next(iter(origins))) not in origins:
            return refuse(403, 'this page serves requests of its own pages only')
        if request.headers.get('content-type', '').split(';')[0] != 'application/json':
            return refuse(415, 'a request must be application/json')
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > BYTES:
                return refuse(413, f'the request has more than {BYTES:,} bytes: shorten the text')
        if len(answering) >= STREAMS:
            return refuse(503, f'{STREAMS} requests are being answered: stop one, or try again')
        try:
            numbers, settings = parse(bytes(body), runs)
        except UserError as e:
            return refuse(400, str(e))
        found = lines(part, runs, numbers, settings, lambda: app.state.server.should_exit)
        answer = Answer(found, media_type='application/x-ndjson', headers=headers)
        answering.append(answer)
        return answer
    app = Starlette(
        routes=[Route('/', show), Route('/runs', list_runs), Route('/watch', list_rows),
                Route('/{part}', post, methods=['POST'])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=['127.0.0.1', 'localhost'], www_redirect=False)])
    app.state.answering = answering
    return app


def listen(port):
    """A socket of this machine.  Raises UserError."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)     # a port is free again as soon as its server has ended
    try:
        found.bind(('127.0.0.1', port))
        found.listen()
    except (OSError, OverflowError) as e:
        found.close()
        raise UserError(f'--port={port} cannot be used ({getattr(e, "strerror", None) or e}): choose another, such as '
                        f'--port={port % 60000 + 1}') from None
    return found


def server(runs, listener):
    """The uvicorn.Server of the page: run(sockets=[listener]) serves it."""
    import uvicorn
    app = application(runs, listener.getsockname()[1])
    app.state.server = uvicorn.Server(uvicorn.Config(app, log_level='warning', access_log=False, server_header=False))
    return app.state.server


def main(argv):
    parser = Arguments(description=__doc__)
    parser.add_argument('run', nargs='*', help='the folder of a run (its best checkpoint), or a checkpoint file')
    parser.add_argument('--pretrained', metavar='NAME', action='append', default=[], help='published weights, such as smollm2')
    parser.add_argument('--port', type=int, default=8000, help='of the address on this machine (0: any that is free)')
    parser.add_argument('--device', default='auto', help='auto, cpu, mps, cuda or cuda:N')
    args = parser.parse_args(argv)
    if not args.run and not args.pretrained:
        raise UserError('there is no run: name folders of runs, such as out/shakespeare_gpt, or --pretrained smollm2')
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as e:
        raise UserError(f'the page needs the package {e.name}: pip install starlette uvicorn') from None
    where = device.pick_device(args.device, 0, 1)
    runs = [*(Run(name, where) for name in args.run), *(Run(name, where, True) for name in args.pretrained)]
    with listen(args.port) as listener:
        for about in (run.about() for run in runs):
            print(f'{about["name"]}: ' + (about.get('error') or f'{about["arch"]}, {about["parameters"]:,} parameters'))
        print(f'http://127.0.0.1:{listener.getsockname()[1]} (open it in a browser; Ctrl-C ends it)', flush=True)
        server(runs, listener).run(sockets=[listener])


if __name__ == '__main__':
    command(main)

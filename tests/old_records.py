"Records as older versions of molrec left them."

import json


def unsealed(folder):
    "The record of a run without its seal, as an older version left it: what is wrong with it is then for the reader to find."
    return {k: v for k, v in json.loads((folder / 'record.json').read_text()).items() if k not in ('files', 'seal')}

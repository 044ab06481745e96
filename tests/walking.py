"Users who walk around a ring of items, as a file of one's own."

import numpy as np
import pandas as pd


def walkers(file, n_users=40, n_items=20, length=10):
    "Interactions of users who walk around a ring."
    rng = np.random.default_rng(0)
    walk = (rng.integers(n_items, size=(n_users, 1)) + np.arange(length)) % n_items
    table = dict(user_id=np.repeat(np.arange(n_users) + 1, length), item_id=walk.ravel() + 1)
    pd.DataFrame(table | dict(timestamp=np.tile(np.arange(length) + 10**9, n_users))).to_csv(file, index=False)

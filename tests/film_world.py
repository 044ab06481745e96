"Sixty users around a ring of thirty films whose titles are hard to type."

from molrec.search.examples import ring_folder, small_mol

TITLES = [
    'Alien (1979)',
    'Aliens (1986)',
    'Matrix, The (1999)',
    'Kid, The (1921)',
    'Kid, The (2000)',
    "Bug's Life, A (1998)",
    'Misérables, Les (1995)',
    'Postino, Il (The Postman) (1994)',
    'Star Wars: Episode IV - A New Hope (1977)',
    'Star Wars: Episode V - The Empire Strikes Back (1980)',
    "Avventura, L' (1960)",
    'Seven (Se7en) (1995)',
    '2001: A Space Odyssey (1968)',
    '1984',
    'L.A. Confidential (1997)',
    'Thelma & Louise (1991)',
    'Mad Max 2 (a.k.a. The Road Warrior) (1981)',
] + [f'Film {i} ({1950 + i})' for i in range(13)]
SMALL = {name: value for name, value in small_mol.items() if name not in ('similarity', 'dropout')} | dict(epochs=2)


def write_world(folder, name, titles=True, genres=False):
    "60 users who walk around 30 items, as a folder of MOLREC_DATA."
    known = dict(genres='Comedy|Drama') if genres else {}
    ring_folder(folder, TITLES if titles else None, name, **known)

"""Virtual patients: whose tumour is known on every day, because we put it there.

```
recipe.py         every figure that a simulated course is made of
anatomy.py        a thorax with its organs known: what a patient is grown from
  phantom.py      … drawn from formulas        real_ct.py   … found in a real CT
tumour.py         a tumour grafted into it     consolidation.py   airless lung beside it
lesion.py         both as layers over healthy lung
patient.py        planning CT, prior contour, and all that stays true for the course
day.py            the anatomy of one fraction: motion and change
cone_beam.py      the scan of that day, in the image domain       rtk.py   … by projections
observer.py       how people draw: the prior, and the label of the day
fraction.py       one fraction: CBCT and truth                    truth.py  … kept on disk
courses.py        a whole course as DICOM
sampling.py       values between voxels, and smooth random fields
```
"""
